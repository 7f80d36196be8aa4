#include "session.h"

#include <stdarg.h>
#include <stdio.h>

mqc_status mqc_session_fail(mqc_session *s, mqc_status status, const char *form, ...) {
    va_list values;
    va_start(values, form);
    vsnprintf(s->error, sizeof s->error, form, values);
    va_end(values);
    return status;
}

mqc_status mqc_session_enter(mqc_session *s) {
    int idle = 0;
    return atomic_compare_exchange_strong(&s->busy, &idle, 1) ? MQC_OK : MQC_ERROR_ARGUMENT;
}

mqc_status mqc_session_leave(mqc_session *s, mqc_status status) {
    atomic_store(&s->busy, 0);
    return status;
}

static size_t vocabulary(const mqc_session *s) { return (size_t)mqc_model_vocabulary(s->model); }

static void release(mqc_session *s) {
    const mqc_allocator *from = s->model->allocator;
    mqc_engine_close(s->engine);
    memory_release(from, s->tokens);
    memory_release(from, s->logits);
    memory_release(from, s->candidates);
    memory_release(from, s->seen);
    memory_release(from, s);
}

mqc_status mqc_session_open(mqc_model *model, int threads, mqc_session **session) {
    const Facts *f = &mqc_facts;
    const mqc_allocator *from = model->allocator;
    if (threads < 1 || threads > 256) return MQC_ERROR_ARGUMENT;
    mqc_session *s = memory_zeroed(from, sizeof *s);
    if (!s) return MQC_ERROR_MEMORY;
    s->model = model;
    s->threads = threads;
    s->sampler.how.size = sizeof s->sampler.how;
    s->tokens = memory_zeroed(from, (mqc_model_context(model) + 1) * sizeof *s->tokens);
    s->logits = memory_zeroed(from, vocabulary(s) * sizeof *s->logits);
    s->engine = mqc_engine_open(model->set->program, model->constants, threads, from);
    if (!s->tokens || !s->logits || !s->engine) return release(s), MQC_ERROR_MEMORY;
    const void *const *rows = model->constants + f->prefix_at;
    for (int i = 0; f->prefix && i < caches(model->set->program); i++) {
        if (is_fixed(model->set->program, i)) break; /* the kernel begins it */
        int two = row_bytes(model->set->program, i).second > 0;
        mqc_engine_write(s->engine, i, 0, f->prefix, rows[0], two ? rows[1] : NULL);
        rows += 1 + two;
    }
    atomic_fetch_add(&model->sessions, 1);
    *session = s;
    return MQC_OK;
}

void mqc_session_close(mqc_session *session) {
    if (!session) return;
    mqc_model *model = session->model;
    release(session);
    atomic_fetch_sub(&model->sessions, 1);
}

const char *mqc_session_error(const mqc_session *session) { return session->error; }

mqc_status mqc_session_tokens(const mqc_session *session, const int32_t **ids, size_t *count) {
    *ids = session->tokens;
    *count = session->count;
    return MQC_OK;
}

size_t mqc_session_common(const mqc_session *session, const int32_t *ids, size_t count) {
    size_t same = 0;
    while (same + 1 < count && same < session->count && ids[same] == session->tokens[same]) same++;
    return same < session->cached && keeps_fixed(session->model->set->program) ? 0 : same;
}

/* Run what was not yet run, a part after another. rows: [of the last ones] logits, at most as many as there is to run;
 * the last row is kept besides. */
static mqc_status run(mqc_session *s, size_t rows, s32 *logits, mqc_progress *progress, void *context) {
    size_t total = s->count - s->cached, done = 0;
    if (s->count > mqc_model_context(s->model))
        return mqc_session_fail(s, MQC_ERROR_FULL, "the context of %zu tokens has no room for another one",
                                mqc_model_context(s->model));
    while (s->cached < s->count) {
        if (atomic_exchange(&s->cancelled, 0)) return mqc_session_fail(s, MQC_ERROR_CANCELLED, "cancelled");
        size_t part = total - done < CHUNK ? total - done : CHUNK;
        size_t before = total - rows > done ? total - rows - done : 0; /* tokens of which no row is wanted */
        int last = done + part == total;
        int position = mqc_facts.prefix + (int)s->cached;
        const s32 *ids = s->tokens + s->cached;
        if (rows == 0) {
            mqc_engine_run(s->engine, ids, (int)part, position, (int)(last ? part - 1 : part), s->logits);
        } else {
            size_t skip = before < part ? before : part;
            mqc_engine_run(s->engine, ids, (int)part, position, (int)skip, logits);
            logits += (part - skip) * vocabulary(s);
            if (last) memcpy(s->logits, logits - vocabulary(s), vocabulary(s) * sizeof *logits);
        }
        done += part;
        s->cached += part;
        if (last) s->logits_at = s->count;
        if (progress) progress(context, done, total);
    }
    return MQC_OK;
}

static mqc_status append(mqc_session *s, const int32_t *ids, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= mqc_model_vocabulary(s->model))
            return mqc_session_fail(s, MQC_ERROR_ARGUMENT, "token %d is outside the vocabulary of %d", (int)ids[i],
                                    (int)mqc_model_vocabulary(s->model));
    size_t most = mqc_model_context(s->model);
    if (count > most || s->count > most - count)
        return mqc_session_fail(s, MQC_ERROR_FULL, "%zu tokens and %zu new ones do not fit the context of %zu",
                                s->count, count, most);
    if (count) memcpy(s->tokens + s->count, ids, count * sizeof *ids);
    s->count += count;
    return MQC_OK;
}

static mqc_status feed(mqc_session *s, const int32_t *ids, size_t count, s32 *logits, mqc_progress *progress,
                       void *context) {
    mqc_status status = append(s, ids, count);
    if (status) return status;
    status = run(s, logits ? count : 0, logits, progress, context);
    if (status == MQC_ERROR_CANCELLED) s->count = s->cached;
    return status;
}

mqc_status mqc_session_prefill(mqc_session *session, const int32_t *ids, size_t count, mqc_progress *progress,
                               void *context) {
    if ((!ids && count) || mqc_session_enter(session)) return MQC_ERROR_ARGUMENT;
    return mqc_session_leave(session, feed(session, ids, count, NULL, progress, context));
}

mqc_status mqc_session_evaluate(mqc_session *session, const int32_t *ids, size_t count, int32_t *logits) {
    if (!ids || !count || !logits || mqc_session_enter(session)) return MQC_ERROR_ARGUMENT;
    return mqc_session_leave(session, feed(session, ids, count, logits, NULL, NULL));
}

/* Logits behind the last token. */
static mqc_status complete(mqc_session *s) {
    if (!s->count) return mqc_session_fail(s, MQC_ERROR_ARGUMENT, "the session has no token yet");
    if (s->logits_at == s->count) return MQC_OK;
    if (s->cached == s->count && keeps_fixed(s->model->set->program))
        return mqc_session_fail(s, MQC_ERROR_UNSUPPORTED,
                                "the model's state is behind the last token, whose logits are gone: append a token");
    if (s->cached == s->count) s->cached--; /* the last token once more */
    return run(s, 0, NULL, NULL, NULL);
}

mqc_status mqc_session_logits(mqc_session *session, const int32_t **logits) {
    if (mqc_session_enter(session)) return MQC_ERROR_ARGUMENT;
    mqc_status status = complete(session);
    if (!status) *logits = session->logits;
    return mqc_session_leave(session, status);
}

mqc_status mqc_session_make_room(mqc_session *s, const mqc_sampling *how) {
    const mqc_allocator *from = s->model->allocator;
    if (mqc_sampling_is_greedy(how)) return MQC_OK;
    if (!s->candidates) s->candidates = memory_zeroed(from, vocabulary(s) * sizeof *s->candidates);
    if (!s->seen) s->seen = memory_zeroed(from, vocabulary(s));
    return s->candidates && s->seen ? MQC_OK : mqc_session_fail(s, MQC_ERROR_MEMORY, "memory ran out");
}

static mqc_status set_sampling(mqc_session *s, const mqc_sampling *how) {
    if (!mqc_sampling_is_valid(how))
        return mqc_session_fail(s, MQC_ERROR_ARGUMENT, "a value of the sampling is out of range, or its size is wrong");
    mqc_status status = mqc_session_make_room(s, how);
    if (status) return status;
    s->sampler.how = *how;
    mqc_generator_seed(&s->sampler.generator, how->seed);
    return MQC_OK;
}

mqc_status mqc_session_set_sampling(mqc_session *session, const mqc_sampling *sampling) {
    static const mqc_sampling GREEDY = {.size = sizeof GREEDY};
    if (mqc_session_enter(session)) return MQC_ERROR_ARGUMENT;
    return mqc_session_leave(session, set_sampling(session, sampling ? sampling : &GREEDY));
}

mqc_status mqc_session_next(mqc_session *session, int32_t *id) {
    mqc_session *s = session;
    if (!id || mqc_session_enter(s)) return MQC_ERROR_ARGUMENT;
    mqc_status status = complete(s);
    if (!status) {
        *id = mqc_sampler_choose(&s->sampler, s->logits, mqc_model_vocabulary(s->model), s->tokens, s->count,
                                 s->candidates, s->seen);
        s->tokens[s->count++] = *id;
    }
    return mqc_session_leave(s, status);
}

mqc_status mqc_session_rewind(mqc_session *session, size_t count) {
    mqc_session *s = session;
    if (mqc_session_enter(s)) return MQC_ERROR_ARGUMENT;
    if (count > s->count)
        return mqc_session_leave(
            s, mqc_session_fail(s, MQC_ERROR_ARGUMENT, "the session has %zu tokens, not %zu", s->count, count));
    if (count && s->cached > count && keeps_fixed(s->model->set->program))
        return mqc_session_leave(
            s, mqc_session_fail(s, MQC_ERROR_UNSUPPORTED,
                                "the model's state is that of %zu tokens alone and cannot go back to %zu: fork the "
                                "session before, or go back to 0", s->cached, count));
    s->count = count;
    if (s->cached > count) s->cached = count;
    if (s->logits_at > count) s->logits_at = 0;
    return mqc_session_leave(s, MQC_OK);
}

static mqc_status copy_into(const mqc_session *from, mqc_session *to) {
    mqc_status status = mqc_session_make_room(to, &from->sampler.how);
    const Program *program = from->model->set->program;
    u8 *rows = NULL;
    for (int i = 0; i < caches(program) && !status; i++) {
        RowBytes size = row_bytes(program, i);
        int fixed = is_fixed(program, i);
        memory_release(from->model->allocator, rows);
        rows = memory_zeroed(from->model->allocator, size.first + size.second);
        if (!rows) return mqc_session_fail(to, MQC_ERROR_MEMORY, "memory ran out");
        for (size_t t = 0; t < (fixed && from->cached ? 1 : from->cached); t++) {
            int position = fixed ? 0 : mqc_facts.prefix + (int)t;
            mqc_engine_read(from->engine, i, position, 1, rows, rows + size.first);
            mqc_engine_write(to->engine, i, position, 1, rows, rows + size.first);
        }
    }
    memory_release(from->model->allocator, rows);
    memcpy(to->tokens, from->tokens, from->count * sizeof *to->tokens);
    memcpy(to->logits, from->logits, vocabulary(from) * sizeof *to->logits);
    to->count = from->count;
    to->cached = from->cached;
    to->logits_at = from->logits_at;
    to->sampler = from->sampler;
    return status;
}

mqc_status mqc_session_fork(mqc_session *session, mqc_session **copy) {
    if (mqc_session_enter(session)) return MQC_ERROR_ARGUMENT;
    mqc_session *made = NULL;
    mqc_status status = mqc_session_open(session->model, session->threads, &made);
    if (!status) status = copy_into(session, made);
    if (!status)
        *copy = made;
    else {
        mqc_session_close(made);
        mqc_session_fail(session, status, "%s", mqc_status_text(status));
    }
    return mqc_session_leave(session, status);
}

void mqc_session_cancel(mqc_session *session) { atomic_store(&session->cancelled, 1); }
