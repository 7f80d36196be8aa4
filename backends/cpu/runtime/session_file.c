/* Sessions on disk. Little-endian:
 *
 *     magic [8], u64 bytes of the file, SHA-256 of all that follows it [32]
 *     hash of the program [32], u64 tokens, u64 of them in the cache
 *     double temperature, top_p, min_p, repetition_penalty, s64 top_k, u64 seed, u64 random state [4]
 *     s32 tokens, padded to 8 bytes; for each cache keys and values, or rows, of the tokens in it
 *     if the program keeps states of fixed size: u64 tokens that the logits are behind, or 0, s32 logits
 *     [vocabulary], and the states if there is a token in the cache
 */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "session.h"

static const char MAGIC[8] = "mqc-s-1";
enum { HASHED_FROM = 48 };

typedef struct {
    char magic[8];
    u64 bytes;
    u8 hash[SHA256_BYTES];
    u8 program[SHA256_BYTES];
    u64 count, cached;
    double temperature, top_p, min_p, repetition_penalty;
    s64 top_k;
    u64 seed;
    Generator generator;
} Head;
_Static_assert(sizeof(Head) == 176, "the head of a session's file has no gaps");

static size_t token_bytes(u64 count) { return (size_t)(count * sizeof(s32) + 7) / 8 * 8; }

/* Of one position in all caches that have positions, or of all states that have none. */
static size_t cache_bytes(const Program *program, int fixed) {
    size_t bytes = 0;
    for (int i = 0; i < caches(program); i++)
        if (is_fixed(program, i) == fixed) bytes += row_bytes(program, i).first + row_bytes(program, i).second;
    return bytes;
}

static size_t logits_bytes(const mqc_session *s) { return (size_t)mqc_model_vocabulary(s->model) * sizeof(s32); }

static u64 file_bytes(const mqc_session *s, u64 count, u64 cached) {
    const Program *program = s->model->set->program;
    u64 bytes = sizeof(Head) + token_bytes(count) + cached * cache_bytes(program, 0);
    if (!keeps_fixed(program)) return bytes;
    return bytes + sizeof(u64) + logits_bytes(s) + (cached ? cache_bytes(program, 1) : 0);
}

static void hash_of(const u8 *file, size_t bytes, u8 hash[SHA256_BYTES]) {
    Sha256 sum;
    mqc_sha256_start(&sum);
    mqc_sha256_add(&sum, file + HASHED_FROM, bytes - HASHED_FROM);
    mqc_sha256_finish(&sum, hash);
}

/* Rows of the caches to and from a file. */
static void move_rows(const mqc_session *s, u8 *at, size_t cached, int from_file) {
    for (int i = 0; i < caches(s->model->set->program) && !is_fixed(s->model->set->program, i); i++) {
        RowBytes size = row_bytes(s->model->set->program, i);
        u8 *second = at + cached * size.first;
        if (from_file)
            mqc_engine_write(s->engine, i, mqc_facts.prefix, (int)cached, at, second);
        else
            mqc_engine_read(s->engine, i, mqc_facts.prefix, (int)cached, at, second);
        at = second + cached * size.second;
    }
}

/* What of a session is that of its last token alone, to and from a file: states cannot go back, so that logits cannot
 * be computed again. Nothing for programs without such states. */
static void move_last(mqc_session *s, u8 *at, size_t cached, int from_file) {
    const Program *program = s->model->set->program;
    u64 logits_at = s->logits_at;
    if (!keeps_fixed(program)) return;
    memcpy(from_file ? (void *)&logits_at : at, from_file ? at : (void *)&logits_at, sizeof logits_at);
    at += sizeof logits_at;
    memcpy(from_file ? (void *)s->logits : at, from_file ? at : (void *)s->logits, logits_bytes(s));
    at += logits_bytes(s);
    s->logits_at = (size_t)logits_at;
    for (int i = 0; i < caches(program) && cached; i++) {
        if (!is_fixed(program, i)) continue;
        if (from_file)
            mqc_engine_write(s->engine, i, 0, 1, at, NULL);
        else
            mqc_engine_read(s->engine, i, 0, 1, at, NULL);
        at += row_bytes(program, i).first;
    }
}

static void fill(mqc_session *s, u8 *file, size_t bytes) {
    const mqc_sampling *how = &s->sampler.how;
    Head head = {.bytes = bytes,
                 .count = s->count,
                 .cached = s->cached,
                 .temperature = how->temperature,
                 .top_p = how->top_p,
                 .min_p = how->min_p,
                 .repetition_penalty = how->repetition_penalty,
                 .top_k = how->top_k,
                 .seed = how->seed,
                 .generator = s->sampler.generator};
    memcpy(head.magic, MAGIC, sizeof MAGIC);
    memcpy(head.program, mqc_facts.program, sizeof head.program);
    memcpy(file, &head, sizeof head);
    memcpy(file + sizeof head, s->tokens, s->count * sizeof *s->tokens);
    u8 *rows = file + sizeof head + token_bytes(s->count);
    move_rows(s, rows, s->cached, 0);
    move_last(s, rows + s->cached * cache_bytes(s->model->set->program, 0), s->cached, 0);
    hash_of(file, bytes, file + offsetof(Head, hash));
}

static int write_all(int file, const u8 *data, size_t bytes) {
    while (bytes) {
        ssize_t wrote = write(file, data, bytes);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) return -1;
        data += wrote, bytes -= (size_t)wrote;
    }
    return 0;
}

/* `partial` becomes `path` once it is whole. */
static mqc_status replace(mqc_session *s, const char *path, char *partial, const u8 *data, size_t bytes) {
    int file = mkstemp(partial);
    if (file < 0) return mqc_session_fail(s, MQC_ERROR_FILE, "cannot write beside %s: error %d", path, errno);
    int failed = write_all(file, data, bytes) || fsync(file) ? errno : 0;
    if (close(file) && !failed) failed = errno;
    if (!failed && rename(partial, path)) failed = errno;
    if (!failed) return MQC_OK;
    unlink(partial);
    return mqc_session_fail(s, MQC_ERROR_FILE, "cannot write %s: error %d", path, failed);
}

static mqc_status save(mqc_session *s, const char *path) {
    static const char END[] = ".XXXXXX";
    const mqc_allocator *from = s->model->allocator;
    size_t bytes = (size_t)file_bytes(s, s->count, s->cached), length = strlen(path);
    u8 *data = memory_zeroed(from, bytes);
    char *partial = memory_zeroed(from, length + sizeof END);
    mqc_status status = MQC_OK;
    if (!data || !partial) {
        status = mqc_session_fail(s, MQC_ERROR_MEMORY, "memory ran out");
    } else {
        fill(s, data, bytes);
        memcpy(partial, path, length);
        memcpy(partial + length, END, sizeof END);
        status = replace(s, path, partial, data, bytes);
    }
    memory_release(from, data);
    memory_release(from, partial);
    return status;
}

static int read_all(int file, u8 *data, size_t bytes) {
    while (bytes) {
        ssize_t got = read(file, data, bytes);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return -1;
        data += got, bytes -= (size_t)got;
    }
    return 0;
}

static mqc_sampling sampling_of(const Head *head) {
    return (mqc_sampling){.size = sizeof(mqc_sampling),
                          .temperature = head->temperature,
                          .top_p = head->top_p,
                          .min_p = head->min_p,
                          .repetition_penalty = head->repetition_penalty,
                          .top_k = head->top_k < 0 || head->top_k > INT32_MAX ? -1 : (s32)head->top_k,
                          .seed = head->seed};
}

/* NULL, or what is wrong with a file of which all is read. */
static const char *fault(const mqc_session *s, const u8 *file, size_t bytes) {
    Head head;
    u8 hash[SHA256_BYTES];
    memcpy(&head, file, sizeof head);
    if (memcmp(head.magic, MAGIC, sizeof MAGIC)) return "is no session's file";
    if (memcmp(head.program, mqc_facts.program, sizeof head.program)) return "is the session of another program";
    if (head.count > mqc_model_context(s->model) + 1 || head.cached > head.count ||
        head.cached > mqc_model_context(s->model) || head.bytes != bytes ||
        file_bytes(s, head.count, head.cached) != bytes)
        return "is truncated, or its sizes are wrong";
    hash_of(file, bytes, hash);
    if (memcmp(hash, head.hash, sizeof hash)) return "was altered: its SHA-256 is not the one that it states";
    mqc_sampling how = sampling_of(&head);
    if (!mqc_sampling_is_valid(&how)) return "states no valid sampling";
    if (keeps_fixed(s->model->set->program)) {
        u64 logits_at;
        memcpy(&logits_at, file + sizeof head + token_bytes(head.count) +
                               head.cached * cache_bytes(s->model->set->program, 0), sizeof logits_at);
        if (logits_at > head.cached) return "has logits behind its last token";
    }
    for (u64 i = 0; i < head.count; i++) {
        s32 id;
        memcpy(&id, file + sizeof head + i * sizeof id, sizeof id);
        if (id < 0 || id >= mqc_model_vocabulary(s->model)) return "has a token outside the vocabulary";
    }
    return NULL;
}

static mqc_status take(mqc_session *s, u8 *file) {
    Head head;
    memcpy(&head, file, sizeof head);
    mqc_sampling how = sampling_of(&head);
    mqc_status status = mqc_session_make_room(s, &how);
    if (status) return status;
    s->sampler = (Sampler){how, head.generator};
    s->count = (size_t)head.count;
    s->cached = (size_t)head.cached;
    memcpy(s->tokens, file + sizeof head, s->count * sizeof *s->tokens);
    u8 *rows = file + sizeof head + token_bytes(head.count);
    move_rows(s, rows, s->cached, 1);
    s->logits_at = 0;
    move_last(s, rows + s->cached * cache_bytes(s->model->set->program, 0), s->cached, 1);
    return MQC_OK;
}

static mqc_status read_file(mqc_session *s, const char *path, int file) {
    const mqc_allocator *from = s->model->allocator;
    size_t context = mqc_model_context(s->model);
    struct stat status;
    if (fstat(file, &status) || !S_ISREG(status.st_mode))
        return mqc_session_fail(s, MQC_ERROR_FILE, "%s is no file", path);
    if (status.st_size < (off_t)sizeof(Head) || (u64)status.st_size > file_bytes(s, context + 1, context))
        return mqc_session_fail(s, MQC_ERROR_DAMAGED, "%s is too short or too long for a session", path);
    size_t bytes = (size_t)status.st_size;
    u8 *data = memory_zeroed(from, bytes);
    if (!data) return mqc_session_fail(s, MQC_ERROR_MEMORY, "memory ran out");
    mqc_status found = MQC_OK;
    const char *wrong;
    if (read_all(file, data, bytes))
        found = mqc_session_fail(s, MQC_ERROR_FILE, "cannot read %s: error %d", path, errno);
    else if ((wrong = fault(s, data, bytes)))
        found = mqc_session_fail(s, MQC_ERROR_DAMAGED, "%s %s", path, wrong);
    else
        found = take(s, data);
    memory_release(from, data);
    return found;
}

mqc_status mqc_session_save(mqc_session *session, const char *path) {
    if (!path || mqc_session_enter(session)) return MQC_ERROR_ARGUMENT;
    return mqc_session_leave(session, save(session, path));
}

mqc_status mqc_session_restore(mqc_session *session, const char *path) {
    if (!path || mqc_session_enter(session)) return MQC_ERROR_ARGUMENT;
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0)
        return mqc_session_leave(
            session, mqc_session_fail(session, MQC_ERROR_FILE, "cannot read %s: error %d", path, errno));
    mqc_status status = read_file(session, path, file);
    close(file);
    return mqc_session_leave(session, status);
}
