/* chat MODEL [MESSAGE]: answers a message, or without one each line of standard input, greedily. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mqc.h"

enum { NEW_TOKENS = 512, MOST_MESSAGES = 64, TEXT_BYTES = 1 << 16, PIECE_BYTES = 4096, THREADS = 2 };

typedef struct {
    const mqc_tokenizer *tokenizer;
    mqc_session *session;
    mqc_decoder *decoder;
    int32_t *ids; /* [room] */
    size_t room;
    const char *roles[MOST_MESSAGES];
    const char *contents[MOST_MESSAGES];
    size_t bytes[MOST_MESSAGES];
    size_t messages, used; /* used: of `text`, in which the contents lie */
    char text[TEXT_BYTES];
} Chat;

static int failed(const char *text) {
    fprintf(stderr, "%s\n", text);
    return 1;
}

/* A message whose content is `bytes` bytes at the end of the text. */
static void add(Chat *c, const char *role, size_t bytes) {
    c->roles[c->messages] = role;
    c->contents[c->messages] = c->text + c->used;
    c->bytes[c->messages] = bytes;
    c->messages++;
    c->used += bytes;
}

/* Show a piece of the answer, and keep it; how long the answer is now. */
static size_t show(Chat *c, size_t answer, const char *piece, size_t bytes) {
    fwrite(piece, 1, bytes, stdout);
    fflush(stdout);
    if (bytes > TEXT_BYTES - c->used - answer) return answer;
    memcpy(c->text + c->used + answer, piece, bytes);
    return answer + bytes;
}

/* The answer to all messages so far becomes the next one. */
static int answer(Chat *c) {
    char piece[PIECE_BYTES];
    size_t count, bytes, length = 0;
    mqc_status status = mqc_tokenizer_chat(c->tokenizer, c->roles, c->contents, c->bytes, c->messages,
                                           MQC_GENERATION_PROMPT, c->ids, c->room, &count);
    if (status) {
        const char *reason = mqc_tokenizer_template_reason(c->tokenizer);
        return failed(status == MQC_ERROR_UNSUPPORTED && reason ? reason : mqc_status_text(status));
    }
    /* Only what is new is run. */
    size_t same = mqc_session_common(c->session, c->ids, count);
    if (mqc_session_rewind(c->session, same)) return failed(mqc_session_error(c->session));
    if (mqc_session_prefill(c->session, c->ids + same, count - same, NULL, NULL))
        return failed(mqc_session_error(c->session));
    for (int i = 0; i < NEW_TOKENS; i++) {
        int32_t id;
        status = mqc_session_next(c->session, &id);
        if (status == MQC_ERROR_FULL || (!status && mqc_tokenizer_is_end(c->tokenizer, id))) break;
        if (status) return failed(mqc_session_error(c->session));
        if (mqc_decoder_push(c->decoder, id, piece, sizeof piece, &bytes)) return failed("a token is too long");
        length = show(c, length, piece, bytes);
    }
    if (mqc_decoder_finish(c->decoder, piece, sizeof piece, &bytes)) return failed("a token is too long");
    length = show(c, length, piece, bytes);
    puts("");
    add(c, "assistant", length);
    return 0;
}

static int converse(Chat *c, const char *message) {
    if (message) {
        if (strlen(message) > TEXT_BYTES) return failed("the message is too long");
        memcpy(c->text, message, strlen(message));
        add(c, "user", strlen(message));
        return answer(c);
    }
    while (c->messages + 2 <= MOST_MESSAGES && c->used + 2 < TEXT_BYTES) {
        if (!fgets(c->text + c->used, (int)(TEXT_BYTES - c->used), stdin)) return 0;
        add(c, "user", strcspn(c->text + c->used, "\n"));
        if (answer(c)) return 1;
    }
    return failed("the conversation is too long");
}

int main(int count, char **arguments) {
    mqc_model *model;
    char error[256];
    Chat *c = calloc(1, sizeof *c);
    if (!c || (count != 2 && count != 3)) return failed("usage: chat MODEL [MESSAGE]");
    if (mqc_model_open(arguments[1], NULL, &model, error, sizeof error)) return failed(error);
    c->tokenizer = mqc_model_tokenizer(model);
    c->room = mqc_model_context(model);
    c->ids = malloc(c->room * sizeof *c->ids);
    mqc_status status = c->tokenizer ? mqc_session_open(model, THREADS, &c->session) : MQC_ERROR_UNSUPPORTED;
    if (!status) status = mqc_decoder_open(c->tokenizer, &c->decoder);
    int result = status || !c->ids ? failed(mqc_status_text(status)) : converse(c, arguments[2]);
    mqc_decoder_close(c->decoder);
    mqc_session_close(c->session);
    mqc_model_close(model);
    free(c->ids);
    free(c);
    return result;
}
