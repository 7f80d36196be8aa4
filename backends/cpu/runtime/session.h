/* A session that is open. */
#ifndef MQC_SESSION_H
#define MQC_SESSION_H

#include "engine.h"
#include "model.h"
#include "sampling.h"

struct mqc_session {
    mqc_model *model;
    Engine *engine;
    int threads;
    s32 *tokens;           /* [context + 1]: the last one that is chosen need not be run */
    size_t count, cached;  /* tokens, and how many of them were run */
    s32 *logits;           /* [vocabulary] */
    size_t logits_at;      /* they are those behind so many tokens; 0: there are none */
    Sampler sampler;
    Candidate *candidates; /* [vocabulary], or NULL: nothing but greedy was asked for */
    u8 *seen;              /* [vocabulary], likewise */
    atomic_int busy, cancelled;
    char error[200];
};

/* Begin and end what one thread at a time may do. */
mqc_status mqc_session_enter(mqc_session *s);
mqc_status mqc_session_leave(mqc_session *s, mqc_status status);

/* Keep a text, and give the status back. */
__attribute__((format(printf, 3, 4))) mqc_status mqc_session_fail(mqc_session *s, mqc_status status, const char *form,
                                                                  ...);

/* What sampling takes of memory. */
mqc_status mqc_session_make_room(mqc_session *s, const mqc_sampling *how);

#endif
