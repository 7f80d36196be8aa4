#define _POSIX_C_SOURCE 200809L
#include "model.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* weights.bin: the magic, u64 bytes of the file, the SHA-256 of all that follows it, u64 count, and count times
 * u64 offset and u64 bytes; then the constants, each at a multiple of 64. Little-endian, as the CPUs are. */
static const char MAGIC[8] = "mqc-w-1";
enum { HASHED_FROM = 48, TABLE = 56, ALIGNMENT = 64 };

typedef struct {
    char *text;
    size_t bytes;
} Message;

__attribute__((format(printf, 3, 4))) static mqc_status fail(mqc_status status, const Message *m, const char *form, ...) {
    va_list values;
    va_start(values, form);
    if (m->text) vsnprintf(m->text, m->bytes, form, values);
    va_end(values);
    return status;
}

const char *mqc_status_text(mqc_status status) {
    switch (status) {
        case MQC_OK: return "all went well";
        case MQC_ERROR_ARGUMENT: return "an argument is not what the function takes";
        case MQC_ERROR_FILE: return "a file cannot be read or written";
        case MQC_ERROR_DAMAGED: return "a file is truncated, altered, or of another program";
        case MQC_ERROR_MEMORY: return "memory or threads ran out";
        case MQC_ERROR_FULL: return "the context or a buffer is too small";
        case MQC_ERROR_CANCELLED: return "the call was cancelled";
        case MQC_ERROR_UNSUPPORTED: return "the model or the CPU has no such part";
    }
    return "no status of mqc";
}

static u64 u64_at(const u8 *at) {
    u64 value;
    memcpy(&value, at, sizeof value);
    return value;
}

static s64 element(const void *data, int type, u64 i) {
    switch (type) {
        case S8: return ((const s8 *)data)[i];
        case S16: return ((const s16 *)data)[i];
        case S32: return ((const s32 *)data)[i];
        default: return ((const s64 *)data)[i];
    }
}

static int in_range(const Constant *c, const void *data) {
    static const u64 width[] = {[ANY] = 0, [S8] = 1, [S16] = 2, [S32] = 4, [S64] = 8};
    if (c->type == ANY) return 1;
    for (u64 i = 0; i < c->bytes / width[c->type]; i++) {
        s64 value = element(data, c->type, i);
        if (value < c->low || value > c->high) return 0;
    }
    return 1;
}

static int has_hash(const u8 *data, size_t bytes, const u8 *hash) {
    Sha256 s;
    u8 found[SHA256_BYTES];
    mqc_sha256_start(&s);
    mqc_sha256_add(&s, data, bytes);
    mqc_sha256_finish(&s, found);
    return !memcmp(found, hash, sizeof found);
}

static mqc_status check_weights(mqc_model *m, const char *path, unsigned flags, const Message *error) {
    const Facts *f = &mqc_facts;
    const u8 *data = m->weights.data;
    size_t size = m->weights.bytes;
    u64 first = TABLE + 16 * f->count;
    if (size < first || memcmp(data, MAGIC, sizeof MAGIC))
        return fail(MQC_ERROR_DAMAGED, error, "%s is no file of mqc's weights", path);
    if (memcmp(data + 16, f->weights, SHA256_BYTES))
        return fail(MQC_ERROR_DAMAGED, error, "%s belongs to another program than this library", path);
    if (u64_at(data + 8) != size || u64_at(data + HASHED_FROM) != f->count)
        return fail(MQC_ERROR_DAMAGED, error, "%s is truncated: it has %zu bytes", path, size);
    if (!(flags & MQC_SKIP_HASH) && !has_hash(data + HASHED_FROM, size - HASHED_FROM, f->weights))
        return fail(MQC_ERROR_DAMAGED, error, "%s was altered: its SHA-256 is not the one that it states", path);
    for (u64 i = 0; i < f->count; i++) {
        u64 offset = u64_at(data + TABLE + 16 * i), bytes = u64_at(data + TABLE + 16 * i + 8);
        if (bytes != f->constants[i].bytes || offset % ALIGNMENT || offset < first || offset > size ||
            bytes > size - offset)
            return fail(MQC_ERROR_DAMAGED, error, "%s: constant %llu is not where it should be", path,
                        (unsigned long long)i);
        m->constants[i] = data + offset;
        if (!in_range(&f->constants[i], m->constants[i]))
            return fail(MQC_ERROR_DAMAGED, error, "%s: constant %llu has a value out of range", path,
                        (unsigned long long)i);
    }
    return MQC_OK;
}

static mqc_status open_tokenizer(mqc_model *m, const char *path, const Message *error) {
    if (m->tables.bytes != mqc_facts.tokenizer_bytes ||
        !has_hash(m->tables.data, m->tables.bytes, mqc_facts.tokenizer))
        return fail(MQC_ERROR_DAMAGED, error, "%s was altered, or belongs to another program than this library", path);
    mqc_status status = mqc_tokenizer_open(m->tables.data, m->tables.bytes, m->allocator, &m->tokenizer);
    return status ? fail(status, error, "%s: %s", path, mqc_status_text(status)) : MQC_OK;
}

static mqc_status map_file(MappedFile *mapped, const char *path, const Message *error) {
    struct stat status;
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0) return fail(MQC_ERROR_FILE, error, "cannot read %s: error %d", path, errno);
    mqc_status found = MQC_OK;
    if (fstat(file, &status) || !S_ISREG(status.st_mode))
        found = fail(MQC_ERROR_FILE, error, "%s is no file", path);
    else if (status.st_size < TABLE || (u64)status.st_size > SIZE_MAX)
        found = fail(MQC_ERROR_DAMAGED, error, "%s is truncated: it has %lld bytes", path, (long long)status.st_size);
    else {
        void *data = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, file, 0);
        if (data == MAP_FAILED)
            found = fail(MQC_ERROR_MEMORY, error, "cannot map %s: error %d", path, errno);
        else
            *mapped = (MappedFile){data, (size_t)status.st_size};
    }
    close(file);
    return found;
}

static mqc_status choose_set(mqc_model *m, const char *name, const Message *error) {
    for (m->set = mqc_instruction_sets; m->set->name; m->set++)
        if ((!name || !strcmp(name, m->set->name)) && m->set->runs_here()) return MQC_OK;
    return fail(MQC_ERROR_UNSUPPORTED, error, "the library or this CPU has no instruction set %s",
                name ? name : "that both know");
}

static mqc_status open_files(mqc_model *m, const char *folder, char *path, size_t bytes, unsigned flags,
                             const Message *error) {
    snprintf(path, bytes, "%s/weights.bin", folder);
    mqc_status status = map_file(&m->weights, path, error);
    if (!status) status = check_weights(m, path, flags, error);
    if (status || !mqc_facts.tokenizer_bytes) return status;
    snprintf(path, bytes, "%s/tokenizer.bin", folder);
    status = map_file(&m->tables, path, error);
    return status ? status : open_tokenizer(m, path, error);
}

static mqc_status open_parts(mqc_model *m, const char *folder, const mqc_model_options *o, const Message *error) {
    mqc_status status = choose_set(m, o->instruction_set, error);
    if (status) return status;
    m->constants = memory_zeroed(m->allocator, (size_t)mqc_facts.count * sizeof *m->constants);
    size_t bytes = strlen(folder) + sizeof "/tokenizer.bin";
    char *path = memory_zeroed(m->allocator, bytes);
    status = m->constants && path ? open_files(m, folder, path, bytes, o->flags, error)
                                  : fail(MQC_ERROR_MEMORY, error, "memory ran out");
    memory_release(m->allocator, path);
    return status;
}

static void release(mqc_model *m) {
    mqc_tokenizer_close(m->tokenizer);
    if (m->tables.data) munmap((void *)m->tables.data, m->tables.bytes);
    if (m->weights.data) munmap((void *)m->weights.data, m->weights.bytes);
    memory_release(m->allocator, m->constants);
    mqc_allocator hooks = m->hooks;
    memory_release(m->allocator ? &hooks : NULL, m);
}

mqc_status mqc_model_open(const char *folder, const mqc_model_options *options, mqc_model **model, char *error,
                          size_t error_bytes) {
    Message message = {error_bytes ? error : NULL, error_bytes};
    static const mqc_model_options DEFAULTS = {sizeof DEFAULTS, 0, NULL, NULL};
    const mqc_model_options *o = options ? options : &DEFAULTS;
    fail(MQC_OK, &message, "%s", "");
    if (!folder || !model || o->size != sizeof *o || o->flags & ~(unsigned)MQC_SKIP_HASH ||
        (o->allocator && (!o->allocator->allocate || !o->allocator->release)))
        return fail(MQC_ERROR_ARGUMENT, &message, "%s", mqc_status_text(MQC_ERROR_ARGUMENT));
    mqc_model *m = memory_zeroed(o->allocator, sizeof *m);
    if (!m) return fail(MQC_ERROR_MEMORY, &message, "memory ran out");
    if (o->allocator) {
        m->hooks = *o->allocator;
        m->allocator = &m->hooks;
    }
    mqc_status status = open_parts(m, folder, o, &message);
    if (status)
        release(m);
    else
        *model = m;
    return status;
}

mqc_status mqc_model_close(mqc_model *model) {
    if (!model) return MQC_OK;
    if (atomic_load(&model->sessions)) return MQC_ERROR_ARGUMENT;
    release(model);
    return MQC_OK;
}

int32_t mqc_model_vocabulary(const mqc_model *model) { return (void)model, mqc_facts.vocabulary; }
size_t mqc_model_context(const mqc_model *model) {
    return (void)model, (size_t)(mqc_facts.context - mqc_facts.prefix);
}
double mqc_model_logit_scale(const mqc_model *model) { return (void)model, mqc_facts.logit_scale; }
double mqc_model_logit_cap(const mqc_model *model) { return (void)model, mqc_facts.logit_cap; }
const char *mqc_model_instruction_set(const mqc_model *model) { return model->set->name; }
const mqc_tokenizer *mqc_model_tokenizer(const mqc_model *model) { return model->tokenizer; }
