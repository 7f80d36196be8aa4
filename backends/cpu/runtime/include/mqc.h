/* A language model as an integer-only program: models, sessions, tokens. mqc_tokenizer.h: from text and to text.
 *
 *     mqc_model *model;
 *     mqc_session *session;
 *     char error[256];
 *     if (mqc_model_open("model", NULL, &model, error, sizeof error)) ...;
 *     if (mqc_session_open(model, 4, &session)) ...;
 *     mqc_session_prefill(session, ids, count, NULL, NULL);
 *     while (!mqc_session_next(session, &id) && id != end) ...;
 *     mqc_session_close(session);
 *     mqc_model_close(model);
 *
 * Functions return MQC_OK or an error; results are set only with MQC_OK, unless stated otherwise. Pointers must not be
 * NULL, unless stated otherwise. Nothing here prints, ends the process, or keeps anything outside models and sessions.
 *
 * Threads: a model may be used by all threads at once. A session is for one thread at a time, apart from
 * mqc_session_cancel; a call while another one is at work on the session is MQC_ERROR_ARGUMENT and changes nothing.
 * After fork(2) neither may be used in the child.
 */
#ifndef MQC_H
#define MQC_H

#include "mqc_common.h"
#include "mqc_tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Models */

typedef struct mqc_model mqc_model;

/* Zero what is not wanted. */
typedef struct mqc_model_options {
    size_t size;   /* sizeof(mqc_model_options) */
    unsigned flags; /* MQC_SKIP_HASH */
    /* NULL: the best one of this library that the CPU has. Else one of avx512vnni, avx2, i8mm, dotprod, neon and
     * portable; MQC_ERROR_UNSUPPORTED if the library or the CPU has it not. */
    const char *instruction_set;
    const mqc_allocator *allocator; /* NULL, or for all memory of the model and its sessions; copied */
} mqc_model_options;

/* Do not read all of the weights to compare their SHA-256: opening is faster. Sizes and values that could do harm are
 * checked all the same. A damaged file then may give other tokens, and nothing worse. */
enum { MQC_SKIP_HASH = 1 };

/* Open `folder`, in which the export wrote weights.bin and tokenizer.bin. They are mapped: pages come when they are
 * read, and processes share them. They must not change while they are open. They belong to this library: files of
 * another program are MQC_ERROR_DAMAGED.
 *
 * options: or NULL. error: NULL, or room for a text that says what is wrong; empty with MQC_OK. */
MQC_API mqc_status mqc_model_open(const char *folder, const mqc_model_options *options, mqc_model **model, char *error,
                                  size_t error_bytes);

/* MQC_ERROR_ARGUMENT, and nothing done, while sessions of it are open. NULL is fine. */
MQC_API mqc_status mqc_model_close(mqc_model *model);

/* Token ids are in [0, vocabulary). */
MQC_API int32_t mqc_model_vocabulary(const mqc_model *model);
/* Most tokens that a session runs. What the program has in front of every sequence is not counted. */
MQC_API size_t mqc_model_context(const mqc_model *model);
/* Real value of one step of the logits. */
MQC_API double mqc_model_logit_scale(const mqc_model *model);
/* The c of a final softcap: the model's logits are c * tanh(x / c), x those that functions here give. 0: none. */
MQC_API double mqc_model_logit_cap(const mqc_model *model);
/* The instruction set that was chosen. */
MQC_API const char *mqc_model_instruction_set(const mqc_model *model);
/* The model's tokenizer, which lives as long as the model; NULL if the program was exported without one. */
MQC_API const mqc_tokenizer *mqc_model_tokenizer(const mqc_model *model);

/* ---- Sessions: a sequence of tokens with its cache and its threads */

typedef struct mqc_session mqc_session;

/* threads: that work on a call, the caller's among them, in [1, 256]. They wait for each other after each op: take as
 * many as there are fast cores to spare, not more. Between calls they sleep. */
MQC_API mqc_status mqc_session_open(mqc_model *model, int threads, mqc_session **session);
MQC_API void mqc_session_close(mqc_session *session); /* NULL is fine */

/* What the last call that failed had to say, "" before one does. It stays until the next call on the session. */
MQC_API const char *mqc_session_error(const mqc_session *session);

/* The tokens: those that were given and those that were chosen. They stay until the next call on the session. */
MQC_API mqc_status mqc_session_tokens(const mqc_session *session, const int32_t **ids, size_t *count);

/* How many of `ids` at their beginning are the session's tokens too, at most count - 1: rewind to there, and prefill
 * the others. 0 if the model keeps a state that cannot go back that far. */
MQC_API size_t mqc_session_common(const mqc_session *session, const int32_t *ids, size_t count);

/* Called between parts of a prompt: `done` of `total` tokens were run. It must not call back but to cancel. */
typedef void mqc_progress(void *context, size_t done, size_t total);

/* Append tokens and run them. With count 0 what was not yet run is run. progress: or NULL.
 *
 * MQC_ERROR_ARGUMENT for an id outside the vocabulary and MQC_ERROR_FULL if the context has no room: nothing changed.
 * MQC_ERROR_CANCELLED: the session holds the tokens that were run until then. */
MQC_API mqc_status mqc_session_prefill(mqc_session *session, const int32_t *ids, size_t count, mqc_progress *progress,
                                       void *context);

/* The same, with the logits of each of these tokens: [count][vocabulary]. */
MQC_API mqc_status mqc_session_evaluate(mqc_session *session, const int32_t *ids, size_t count, int32_t *logits);

/* Logits behind the last token, [vocabulary]; they stay until the next call on the session. MQC_ERROR_ARGUMENT if
 * there is no token. */
MQC_API mqc_status mqc_session_logits(mqc_session *session, const int32_t **logits);

/* How tokens are chosen; 0 for what is not wanted, all 0: greedy. The order is: repetition penalty, temperature, top-k,
 * top-p, min-p. */
typedef struct mqc_sampling {
    size_t size;               /* sizeof(mqc_sampling) */
    double temperature;        /* 0: the largest logit; of equal ones the smallest id */
    double top_p;              /* in [0, 1]: the fewest of the likeliest tokens whose probabilities reach it */
    double min_p;              /* in [0, 1]: tokens of at least this share of the likeliest one's probability */
    double repetition_penalty; /* logits of tokens that the session holds are divided by it, negative ones multiplied */
    int32_t top_k;             /* the k likeliest tokens */
    uint64_t seed;             /* of the random numbers, which begin anew with mqc_session_set_sampling */
} mqc_sampling;

/* NULL: greedy, as a session begins. MQC_ERROR_ARGUMENT for values out of range: nothing changed. With one seed the
 * tokens are those of mqc's Python. */
MQC_API mqc_status mqc_session_set_sampling(mqc_session *session, const mqc_sampling *sampling);

/* Choose the token that follows, and append it. It is run with the next call that needs it: so the end token of an
 * answer costs nothing, and may be taken back by mqc_session_rewind.
 *
 * MQC_ERROR_ARGUMENT if there is no token yet, MQC_ERROR_FULL if the context has no room for the last one,
 * MQC_ERROR_CANCELLED: nothing changed. */
MQC_API mqc_status mqc_session_next(mqc_session *session, int32_t *id);

/* Forget all but the first `count` tokens. Random numbers are not taken back. MQC_ERROR_ARGUMENT if there are fewer.
 * MQC_ERROR_UNSUPPORTED if the model keeps a state of fixed size (linear attention), and some of the forgotten tokens
 * were run: such a state goes back to 0 only. Fork the session before. */
MQC_API mqc_status mqc_session_rewind(mqc_session *session, size_t count);

/* A copy that goes on by itself, with as many threads, the same sampling and the same next random numbers. */
MQC_API mqc_status mqc_session_fork(mqc_session *session, mqc_session **copy);

/* Write tokens, cache and sampling to a file, which appears whole or not at all, and go on from it, in this process or
 * another, with the same tokens. The file holds what was said: keep it as carefully.
 *
 * Restoring: MQC_ERROR_FILE if it cannot be read; MQC_ERROR_DAMAGED if it is truncated, altered, of another program, or
 * no session's; the session stays as it was. */
MQC_API mqc_status mqc_session_save(mqc_session *session, const char *path);
MQC_API mqc_status mqc_session_restore(mqc_session *session, const char *path);

/* From any thread: the call at work, or the next one that runs tokens, ends with MQC_ERROR_CANCELLED, at the latest after
 * 128 tokens. */
MQC_API void mqc_session_cancel(mqc_session *session);

#ifdef __cplusplus
}
#endif
#endif
