/* Drives the C runtime. Ends with 0, or says which check does not hold.
 *
 * driver run MODEL THREADS NEW ID...   the instruction set, logits of the ids, and NEW greedy ids
 * driver check MODEL WORK              every function, in a folder to write to
 * driver states MODEL WORK             what is other where the model keeps states of fixed size
 * driver threads MODEL                 two sessions of one model in two threads, and a third that cancels
 * driver damaged MODEL WORK COUNT      altered files of weights, of tokenizers and of sessions
 */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mqc.h"
#include "sha256.h"

#define CHECK(holds)                                                    \
    do {                                                                \
        if (!(holds)) {                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #holds); \
            exit(1);                                                    \
        }                                                               \
    } while (0)

enum { PROMPT = 150, ANSWER = 12, PATH = 4096 };

static uint64_t state = 1;
static uint32_t next_random(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

static mqc_model *open_model(const char *folder) {
    mqc_model *model = NULL;
    char error[256];
    if (mqc_model_open(folder, NULL, &model, error, sizeof error)) fprintf(stderr, "%s\n", error), exit(1);
    CHECK(!*error);
    return model;
}

static mqc_session *open_session(mqc_model *model, int threads) {
    mqc_session *session = NULL;
    CHECK(mqc_session_open(model, threads, &session) == MQC_OK);
    return session;
}

static void make_prompt(const mqc_model *model, int32_t ids[PROMPT]) {
    for (int i = 0; i < PROMPT; i++) ids[i] = (int32_t)(next_random() % (uint32_t)mqc_model_vocabulary(model));
}

static void answer(mqc_session *session, int32_t ids[ANSWER]) {
    for (int i = 0; i < ANSWER; i++) CHECK(mqc_session_next(session, &ids[i]) == MQC_OK);
}

static int same(const int32_t *a, const int32_t *b, size_t count) { return !memcmp(a, b, count * sizeof *a); }

static void path_in(char path[PATH], const char *folder, const char *name) {
    CHECK(snprintf(path, PATH, "%s/%s", folder, name) < PATH);
}

/* ---- run */

static int run(int count, char **arguments) {
    CHECK(count > 5);
    mqc_model *model = open_model(arguments[2]);
    mqc_session *session = open_session(model, atoi(arguments[3]));
    size_t ids = (size_t)count - 5, vocabulary = (size_t)mqc_model_vocabulary(model);
    int32_t *prompt = calloc(ids, sizeof *prompt), *logits = calloc(ids * vocabulary, sizeof *logits);
    for (size_t i = 0; i < ids; i++) prompt[i] = atoi(arguments[5 + i]);
    puts(mqc_model_instruction_set(model));
    CHECK(mqc_session_evaluate(session, prompt, ids, logits) == MQC_OK);
    for (size_t i = 0; i < ids * vocabulary; i++) printf("%d ", (int)logits[i]);
    puts("");
    for (int i = 0, id; i < atoi(arguments[4]); i++) {
        CHECK(mqc_session_next(session, &id) == MQC_OK);
        printf("%d ", id);
    }
    free(prompt);
    free(logits);
    mqc_session_close(session);
    CHECK(mqc_model_close(model) == MQC_OK);
    return 0;
}

/* ---- check */

typedef struct {
    size_t blocks, left; /* allocated, and how many more there are */
} Budget;

static void *allocate(void *context, size_t bytes) {
    Budget *budget = context;
    if (!budget->left) return NULL;
    void *memory = malloc(bytes);
    CHECK(memory != NULL);
    budget->blocks++;
    budget->left--;
    return memset(memory, 0xaa, bytes);
}

static void release(void *context, void *memory) {
    CHECK(memory != NULL);
    ((Budget *)context)->blocks--;
    free(memory);
}

/* Everything that takes memory, as far as it goes; whether it went to the end. */
static int use_memory(const char *folder, const char *path, Budget *budget, int32_t ids[ANSWER]) {
    mqc_allocator allocator = {allocate, release, budget};
    mqc_model_options options = {sizeof options, 0, NULL, &allocator};
    mqc_sampling sampling = {.size = sizeof sampling, .temperature = 1, .seed = 3};
    mqc_model *model = NULL;
    mqc_session *session = NULL, *copy = NULL;
    static const int32_t prompt[3] = {5, 9, 3};
    mqc_status status = mqc_model_open(folder, &options, &model, NULL, 0);
    memset(&allocator, 0, sizeof allocator); /* it was copied */
    if (!status) status = mqc_session_open(model, 2, &session);
    if (!status) status = mqc_session_prefill(session, prompt, 3, NULL, NULL);
    if (!status) status = mqc_session_set_sampling(session, &sampling);
    if (!status) status = mqc_session_fork(session, &copy);
    if (!status) status = mqc_session_save(session, path);
    if (!status) status = mqc_session_restore(copy, path);
    if (!status) answer(copy, ids);
    CHECK(status == MQC_OK || status == MQC_ERROR_MEMORY);
    if (model && session) CHECK(mqc_model_close(model) == MQC_ERROR_ARGUMENT);
    mqc_session_close(copy);
    mqc_session_close(session);
    CHECK(mqc_model_close(model) == MQC_OK);
    CHECK(budget->blocks == 0);
    return !status;
}

static void check_allocator(const char *folder, const char *path) {
    int32_t first[ANSWER], ids[ANSWER];
    Budget all = {0, SIZE_MAX};
    CHECK(use_memory(folder, path, &all, first));
    size_t needed = 0;
    for (Budget some = {0, 0};; some = (Budget){0, ++needed}) {
        CHECK(needed < 1000);
        if (use_memory(folder, path, &some, ids)) break;
    }
    CHECK(needed > 10);
    CHECK(same(first, ids, ANSWER));
}

typedef struct {
    mqc_session *session;
    size_t calls, stop_at;
} Watch;

static void watch(void *context, size_t done, size_t total) {
    Watch *w = context;
    CHECK(done <= total && done > 0);
    w->calls++;
    if (done >= w->stop_at) mqc_session_cancel(w->session);
}

static void check_session(mqc_model *model, const char *path) {
    mqc_session *a = open_session(model, 2), *b = open_session(model, 1), *c = NULL;
    int32_t prompt[PROMPT], first[ANSWER], second[ANSWER], id;
    size_t count, vocabulary = (size_t)mqc_model_vocabulary(model), context = mqc_model_context(model);
    const int32_t *held, *logits;
    int32_t *rows = calloc(PROMPT * vocabulary, sizeof *rows);
    make_prompt(model, prompt);
    CHECK(mqc_session_next(a, &id) == MQC_ERROR_ARGUMENT && *mqc_session_error(a));
    CHECK(mqc_session_logits(a, &logits) == MQC_ERROR_ARGUMENT);

    /* in pieces, and at once */
    CHECK(mqc_session_prefill(a, prompt, 1, NULL, NULL) == MQC_OK);
    CHECK(mqc_session_prefill(a, prompt + 1, PROMPT - 1, NULL, NULL) == MQC_OK);
    CHECK(mqc_session_evaluate(b, prompt, PROMPT, rows) == MQC_OK);
    CHECK(mqc_session_logits(a, &logits) == MQC_OK);
    CHECK(same(logits, rows + (PROMPT - 1) * vocabulary, vocabulary));
    answer(a, first);
    answer(b, second);
    CHECK(same(first, second, ANSWER));
    CHECK(mqc_session_tokens(a, &held, &count) == MQC_OK && count == PROMPT + ANSWER);
    CHECK(same(held, prompt, PROMPT) && same(held + PROMPT, first, ANSWER));
    CHECK(mqc_session_common(a, prompt, PROMPT) == PROMPT - 1);
    CHECK(mqc_session_common(a, first, 0) == 0);

    /* back, to each kind of place */
    static const size_t places[] = {PROMPT + ANSWER, PROMPT + ANSWER - 1, PROMPT + 1, PROMPT, PROMPT - 3, 1};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        CHECK(mqc_session_rewind(a, places[i]) == MQC_OK);
        CHECK(mqc_session_logits(a, &logits) == MQC_OK);
        if (places[i] <= PROMPT) CHECK(same(logits, rows + (places[i] - 1) * vocabulary, vocabulary));
        else CHECK(mqc_session_next(a, &id) == MQC_OK && (places[i] == PROMPT + ANSWER || id == first[places[i] - PROMPT]));
    }
    CHECK(mqc_session_rewind(a, 2) == MQC_ERROR_ARGUMENT);
    CHECK(mqc_session_rewind(a, 0) == MQC_OK && mqc_session_next(a, &id) == MQC_ERROR_ARGUMENT);
    CHECK(mqc_session_prefill(a, prompt, PROMPT, NULL, NULL) == MQC_OK);
    answer(a, second);
    CHECK(same(first, second, ANSWER));

    /* copies and files, with a token that was not run yet and without */
    mqc_sampling sampling = {.size = sizeof sampling, .temperature = 1.5, .top_k = 20, .top_p = 0.9, .min_p = 0.01,
                             .repetition_penalty = 1.2, .seed = 7};
    for (int pending = 0; pending < 2; pending++) {
        CHECK(mqc_session_rewind(a, PROMPT) == MQC_OK);
        CHECK(mqc_session_set_sampling(a, &sampling) == MQC_OK);
        if (pending) CHECK(mqc_session_next(a, &id) == MQC_OK);
        CHECK(mqc_session_fork(a, &c) == MQC_OK);
        CHECK(mqc_session_save(a, path) == MQC_OK);
        answer(a, first);
        answer(c, second);
        CHECK(same(first, second, ANSWER));
        CHECK(mqc_session_restore(b, path) == MQC_OK);
        CHECK(mqc_session_restore(c, path) == MQC_OK);
        if (pending) CHECK(mqc_session_rewind(c, PROMPT) == MQC_OK && mqc_session_prefill(c, &id, 1, NULL, NULL) == MQC_OK);
        answer(b, second);
        CHECK(same(first, second, ANSWER));
        answer(c, second);
        CHECK(same(first, second, ANSWER));
        mqc_session_close(c);
    }
    CHECK(mqc_session_set_sampling(b, NULL) == MQC_OK);

    /* cancelled between parts: what was run is there */
    Watch w = {a, 0, 128};
    CHECK(mqc_session_rewind(a, 0) == MQC_OK);
    CHECK(mqc_session_prefill(a, prompt, PROMPT, watch, &w) == MQC_ERROR_CANCELLED && w.calls == 1);
    CHECK(mqc_session_tokens(a, &held, &count) == MQC_OK && count == 128);
    CHECK(mqc_session_logits(a, &logits) == MQC_OK && same(logits, rows + 127 * vocabulary, vocabulary));
    w = (Watch){a, 0, SIZE_MAX};
    CHECK(mqc_session_prefill(a, prompt + 128, PROMPT - 128, watch, &w) == MQC_OK && w.calls == 1);
    CHECK(mqc_session_logits(a, &logits) == MQC_OK && same(logits, rows + (PROMPT - 1) * vocabulary, vocabulary));
    CHECK(mqc_session_next(a, &id) == MQC_OK);
    mqc_session_cancel(a);
    CHECK(mqc_session_next(a, &id) == MQC_ERROR_CANCELLED);
    CHECK(mqc_session_next(a, &id) == MQC_OK);

    /* what is refused changes nothing */
    CHECK(mqc_session_rewind(a, 3) == MQC_OK);
    static const int32_t outside[2] = {3, -1};
    CHECK(mqc_session_prefill(a, outside, 2, NULL, NULL) == MQC_ERROR_ARGUMENT);
    CHECK(mqc_session_prefill(a, NULL, 2, NULL, NULL) == MQC_ERROR_ARGUMENT);
    CHECK(mqc_session_tokens(a, &held, &count) == MQC_OK && count == 3);
    while (count < context) {
        size_t part = context - count < PROMPT ? context - count : PROMPT;
        CHECK(mqc_session_prefill(a, prompt, part, NULL, NULL) == MQC_OK);
        CHECK(mqc_session_tokens(a, &held, &count) == MQC_OK);
    }
    CHECK(mqc_session_prefill(a, prompt, 1, NULL, NULL) == MQC_ERROR_FULL && *mqc_session_error(a));
    CHECK(mqc_session_next(a, &id) == MQC_OK);
    CHECK(mqc_session_next(a, &id) == MQC_ERROR_FULL);
    CHECK(mqc_session_save(a, path) == MQC_OK && mqc_session_restore(b, path) == MQC_OK);
    CHECK(mqc_session_next(b, &id) == MQC_ERROR_FULL);
    CHECK(mqc_session_tokens(b, &held, &count) == MQC_OK && count == context + 1);
    mqc_sampling wrong[] = {sampling, sampling, sampling, sampling, sampling, sampling};
    wrong[0].temperature = -1, wrong[1].top_p = 1.5, wrong[2].min_p = -0.1, wrong[3].top_k = -1;
    wrong[4].size--, wrong[5].temperature = 0.0 / (double)(count == 0);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CHECK(mqc_session_set_sampling(a, &wrong[i]) == MQC_ERROR_ARGUMENT);
    CHECK(mqc_session_save(a, "/no/such/folder/file") == MQC_ERROR_FILE);
    CHECK(mqc_session_restore(a, "/no/such/file") == MQC_ERROR_FILE && *mqc_session_error(a));
    CHECK(mqc_session_restore(a, "/dev/zero") == MQC_ERROR_FILE);
    free(rows);
    mqc_session_close(a);
    mqc_session_close(b);
}

/* States of fixed size go back to nothing but a copy; logits behind the last token stay with them. */
static void check_states(mqc_model *model, const char *path) {
    mqc_session *a = open_session(model, 2), *b = open_session(model, 1), *c = NULL;
    int32_t prompt[PROMPT], first[ANSWER], second[ANSWER];
    size_t count, vocabulary = (size_t)mqc_model_vocabulary(model);
    const int32_t *held, *logits;
    int32_t *rows = calloc(PROMPT * vocabulary, sizeof *rows);
    make_prompt(model, prompt);
    CHECK(mqc_session_evaluate(b, prompt, PROMPT, rows) == MQC_OK);
    answer(b, first);

    /* one answer after another, and from the beginning */
    for (int i = 0; i < 2; i++) {
        for (int t = 0; t < PROMPT; t += 30) CHECK(mqc_session_prefill(a, prompt + t, 30, NULL, NULL) == MQC_OK);
        answer(a, second);
        CHECK(same(first, second, ANSWER));
        CHECK(mqc_session_rewind(a, PROMPT + ANSWER - 1) == MQC_OK); /* what was not run may be taken back */
        CHECK(mqc_session_rewind(a, PROMPT) == MQC_ERROR_UNSUPPORTED && *mqc_session_error(a));
        CHECK(mqc_session_tokens(a, &held, &count) == MQC_OK && count == PROMPT + ANSWER - 1);
        CHECK(mqc_session_common(a, prompt, PROMPT) == 0);
        CHECK(mqc_session_rewind(a, 0) == MQC_OK);
    }
    CHECK(mqc_session_common(a, prompt, PROMPT) == 0);

    /* copies and files: with all tokens run, with one that was not, and of nothing */
    for (int pending = 0; pending < 2; pending++) {
        CHECK(mqc_session_rewind(a, 0) == MQC_OK && mqc_session_prefill(a, prompt, PROMPT, NULL, NULL) == MQC_OK);
        if (pending) answer(a, second);
        CHECK(mqc_session_fork(a, &c) == MQC_OK);
        CHECK(mqc_session_save(a, path) == MQC_OK && mqc_session_restore(b, path) == MQC_OK);
        if (!pending) {
            CHECK(mqc_session_logits(b, &logits) == MQC_OK);
            CHECK(same(logits, rows + (PROMPT - 1) * vocabulary, vocabulary));
        }
        answer(a, first);
        answer(b, second);
        CHECK(same(first, second, ANSWER));
        answer(c, second);
        CHECK(same(first, second, ANSWER));
        mqc_session_close(c);
    }
    CHECK(mqc_session_rewind(a, 0) == MQC_OK && mqc_session_save(a, path) == MQC_OK);
    CHECK(mqc_session_restore(b, path) == MQC_OK && mqc_session_fork(a, &c) == MQC_OK);
    CHECK(mqc_session_evaluate(b, prompt, 9, rows) == MQC_OK && mqc_session_prefill(c, prompt, 9, NULL, NULL) == MQC_OK);
    CHECK(mqc_session_logits(c, &logits) == MQC_OK && same(logits, rows + 8 * vocabulary, vocabulary));

    /* cancelled: the logits are gone until the next token */
    Watch w = {a, 0, 128};
    CHECK(mqc_session_prefill(a, prompt, PROMPT, watch, &w) == MQC_ERROR_CANCELLED);
    CHECK(mqc_session_logits(a, &logits) == MQC_ERROR_UNSUPPORTED && *mqc_session_error(a));
    CHECK(mqc_session_prefill(a, prompt + 128, PROMPT - 128, NULL, NULL) == MQC_OK);
    CHECK(mqc_session_rewind(b, 0) == MQC_OK && mqc_session_evaluate(b, prompt, PROMPT, rows) == MQC_OK);
    CHECK(mqc_session_logits(a, &logits) == MQC_OK && same(logits, rows + (PROMPT - 1) * vocabulary, vocabulary));
    free(rows);
    mqc_session_close(a);
    mqc_session_close(b);
    mqc_session_close(c);
}

static void check_opening(const char *folder) {
    mqc_model *model = NULL;
    char error[256];
    mqc_model_options options = {sizeof options, 0, "mmx", NULL};
    CHECK(mqc_model_open(folder, &options, &model, error, sizeof error) == MQC_ERROR_UNSUPPORTED && strstr(error, "mmx"));
    options = (mqc_model_options){sizeof options - 1, 0, NULL, NULL};
    CHECK(mqc_model_open(folder, &options, &model, NULL, 0) == MQC_ERROR_ARGUMENT);
    CHECK(mqc_model_open("/no/such", NULL, &model, error, sizeof error) == MQC_ERROR_FILE && strstr(error, "/no/such"));
    CHECK(model == NULL);
    for (int i = -1; i < 9; i++) CHECK(*mqc_status_text((mqc_status)i));
    model = open_model(folder);
    mqc_session *session = NULL;
    CHECK(mqc_session_open(model, 0, &session) == MQC_ERROR_ARGUMENT);
    CHECK(mqc_session_open(model, 257, &session) == MQC_ERROR_ARGUMENT && session == NULL);
    CHECK(mqc_model_logit_scale(model) > 0);
    CHECK(mqc_model_close(model) == MQC_OK && mqc_model_close(NULL) == MQC_OK);
    mqc_session_close(NULL);
}

static int check(char **arguments) {
    char path[PATH];
    path_in(path, arguments[3], "session");
    check_opening(arguments[2]);
    mqc_model *model = open_model(arguments[2]);
    check_session(model, path);
    CHECK(mqc_model_close(model) == MQC_OK);
    check_allocator(arguments[2], path);
    CHECK(unlink(path) == 0);
    return 0;
}

static int states(char **arguments) {
    char path[PATH];
    path_in(path, arguments[3], "session");
    mqc_model *model = open_model(arguments[2]);
    check_states(model, path);
    CHECK(mqc_model_close(model) == MQC_OK);
    check_allocator(arguments[2], path);
    CHECK(unlink(path) == 0);
    return 0;
}

/* ---- threads */

typedef struct {
    mqc_model *model;
    mqc_session *session;
    int32_t ids[ANSWER];
} Job;

static void *talk(void *argument) {
    Job *job = argument;
    int32_t prompt[PROMPT];
    for (int i = 0; i < PROMPT; i++) prompt[i] = i % mqc_model_vocabulary(job->model);
    job->session = open_session(job->model, 2);
    CHECK(mqc_session_prefill(job->session, prompt, PROMPT, NULL, NULL) == MQC_OK);
    answer(job->session, job->ids);
    mqc_session_close(job->session);
    return NULL;
}

static void *go_on(void *argument) {
    static const int32_t prompt[3] = {1, 2, 3};
    mqc_status status;
    while (!(status = mqc_session_prefill(argument, prompt, 3, NULL, NULL))) CHECK(!mqc_session_rewind(argument, 0));
    CHECK(status == MQC_ERROR_CANCELLED);
    return NULL;
}

static int threads(char **arguments) {
    mqc_model *model = open_model(arguments[2]);
    Job jobs[2] = {{.model = model}, {.model = model}};
    pthread_t ids[3];
    mqc_session *endless = open_session(model, 1);
    CHECK(!pthread_create(&ids[2], NULL, go_on, endless));
    for (int i = 0; i < 2; i++) CHECK(!pthread_create(&ids[i], NULL, talk, &jobs[i]));
    for (int i = 0; i < 2; i++) CHECK(!pthread_join(ids[i], NULL));
    mqc_session_cancel(endless);
    CHECK(!pthread_join(ids[2], NULL));
    CHECK(same(jobs[0].ids, jobs[1].ids, ANSWER));
    mqc_session_close(endless);
    CHECK(mqc_model_close(model) == MQC_OK);
    return 0;
}

/* ---- damaged */

static uint8_t *read_file(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    CHECK(file && !fseek(file, 0, SEEK_END));
    *bytes = (size_t)ftell(file);
    uint8_t *data = malloc(*bytes);
    rewind(file);
    CHECK(data && fread(data, 1, *bytes, file) == *bytes);
    fclose(file);
    return data;
}

static void write_file(const char *path, const uint8_t *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(data, 1, bytes, file) == bytes && !fclose(file));
}

/* Alter some bytes, half of the time of the first `head` ones; how many bytes are left. */
static size_t damage(uint8_t *data, size_t bytes, size_t head) {
    static const uint8_t extremes[] = {0, 1, 0x7f, 0x80, 0xff};
    size_t span = next_random() % 2 ? head : bytes;
    for (uint32_t i = next_random() % 8 + 1; i; i--) {
        uint8_t *at = &data[next_random() % span];
        *at = next_random() % 2 ? (uint8_t)next_random() : extremes[next_random() % sizeof extremes];
    }
    return next_random() % 8 ? bytes : next_random() % bytes;
}

static void hash_again(uint8_t *data, size_t bytes) {
    Sha256 sum;
    if (bytes < 48) return;
    mqc_sha256_start(&sum);
    mqc_sha256_add(&sum, data + 48, bytes - 48);
    mqc_sha256_finish(&sum, data + 16);
}

/* Open a model of which one file is altered; whether it was taken all the same. */
static int damaged_model(const char *folder, const char *work, const char *name) {
    char path[PATH], error[256];
    int opened = 0;
    size_t bytes;
    path_in(path, folder, name);
    uint8_t *whole = read_file(path, &bytes), *data = malloc(bytes);
    path_in(path, work, name);
    memcpy(data, whole, bytes);
    size_t left = damage(data, bytes, 1024);
    int differs = left != bytes || memcmp(data, whole, bytes);
    write_file(path, data, left);
    for (unsigned flags = 0; flags <= MQC_SKIP_HASH; flags++) {
        mqc_model_options options = {sizeof options, flags, NULL, NULL};
        mqc_model *model;
        mqc_status status = mqc_model_open(work, &options, &model, error, sizeof error);
        CHECK(status == MQC_OK || status == MQC_ERROR_DAMAGED);
        CHECK(!status == !*error);
        if (!differs) CHECK(status == MQC_OK);
        else if (!flags) CHECK(status == MQC_ERROR_DAMAGED);
        if (status) continue;
        opened += differs;
        mqc_session *session = open_session(model, 1);
        int32_t ids[ANSWER] = {1, 2, 3};
        CHECK(mqc_session_prefill(session, ids, ANSWER, NULL, NULL) == MQC_OK);
        answer(session, ids);
        mqc_session_close(session);
        CHECK(mqc_model_close(model) == MQC_OK);
    }
    write_file(path, whole, bytes);
    free(whole);
    free(data);
    return opened;
}

static void copy_file(const char *from, const char *to, const char *name) {
    char path[PATH];
    size_t bytes;
    path_in(path, from, name);
    uint8_t *data = read_file(path, &bytes);
    path_in(path, to, name);
    write_file(path, data, bytes);
    free(data);
}

static int damaged_session(mqc_session *session, const uint8_t *whole, size_t bytes, const char *path) {
    uint8_t *data = malloc(bytes);
    memcpy(data, whole, bytes);
    size_t left = damage(data, bytes, 200), count;
    int repaired = next_random() % 2, differs = left != bytes || memcmp(data, whole, bytes), taken = 0;
    if (repaired) hash_again(data, left);
    write_file(path, data, left);
    mqc_status status = mqc_session_restore(session, path);
    CHECK(status == MQC_OK || status == MQC_ERROR_DAMAGED);
    if (!repaired) CHECK(!status == !differs);
    const int32_t *held;
    CHECK(mqc_session_tokens(session, &held, &count) == MQC_OK);
    if (!status && count) {
        int32_t id;
        taken = differs;
        status = mqc_session_next(session, &id);
        CHECK(status == MQC_OK || status == MQC_ERROR_FULL);
        CHECK(status || (id >= 0 && id < 1 << 20));
    }
    free(data);
    return taken;
}

static int damaged(char **arguments) {
    char path[PATH];
    int32_t prompt[PROMPT];
    size_t bytes;
    int rounds = atoi(arguments[4]), weights = 0, sessions = 0;
    mqc_model *model = open_model(arguments[2]);
    mqc_session *session = open_session(model, 1);
    mqc_sampling sampling = {.size = sizeof sampling, .temperature = 1, .repetition_penalty = 1.1};
    make_prompt(model, prompt);
    path_in(path, arguments[3], "session");
    CHECK(mqc_session_set_sampling(session, &sampling) == MQC_OK);
    CHECK(mqc_session_prefill(session, prompt, 20, NULL, NULL) == MQC_OK);
    CHECK(mqc_session_save(session, path) == MQC_OK);
    uint8_t *whole = read_file(path, &bytes);
    copy_file(arguments[2], arguments[3], "weights.bin");
    copy_file(arguments[2], arguments[3], "tokenizer.bin");
    for (int i = 0; i < rounds; i++) {
        weights += damaged_model(arguments[2], arguments[3], "weights.bin");
        CHECK(!damaged_model(arguments[2], arguments[3], "tokenizer.bin"));
        sessions += damaged_session(session, whole, bytes, path);
    }
    printf("%d %d\n", weights, sessions);
    free(whole);
    mqc_session_close(session);
    CHECK(mqc_model_close(model) == MQC_OK);
    return 0;
}

int main(int count, char **arguments) {
    const char *what = count > 2 ? arguments[1] : "";
    if (!strcmp(what, "run")) return run(count, arguments);
    if (!strcmp(what, "check") && count == 4) return check(arguments);
    if (!strcmp(what, "states") && count == 4) return states(arguments);
    if (!strcmp(what, "threads") && count == 3) return threads(arguments);
    if (!strcmp(what, "damaged") && count == 5) return damaged(arguments);
    return 2;
}
