/* complete MODEL TEXT: continues a text, greedily. */
#include <stdio.h>
#include <string.h>

#include "mqc.h"

enum { NEW_TOKENS = 32, MOST = 4096, TEXT_BYTES = 4096, THREADS = 2 };

static int failed(const char *text) {
    fprintf(stderr, "%s\n", text);
    return 1;
}

static int complete(const mqc_tokenizer *tokenizer, mqc_session *session, mqc_decoder *decoder, const char *text) {
    static int32_t ids[MOST];
    char piece[TEXT_BYTES];
    size_t count, bytes;
    mqc_status status = mqc_tokenizer_encode(tokenizer, text, strlen(text), MQC_ADD_START, ids, MOST, &count);
    if (status) return failed(mqc_status_text(status));
    if (mqc_session_prefill(session, ids, count, NULL, NULL)) return failed(mqc_session_error(session));
    for (int i = 0; i < NEW_TOKENS; i++) {
        int32_t id;
        status = mqc_session_next(session, &id);
        if (status == MQC_ERROR_FULL || (!status && mqc_tokenizer_is_end(tokenizer, id))) break;
        if (status) return failed(mqc_session_error(session));
        if (mqc_decoder_push(decoder, id, piece, sizeof piece, &bytes)) return failed("a token is too long");
        fwrite(piece, 1, bytes, stdout);
        fflush(stdout);
    }
    if (mqc_decoder_finish(decoder, piece, sizeof piece, &bytes)) return failed("a token is too long");
    fwrite(piece, 1, bytes, stdout);
    puts("");
    return 0;
}

int main(int count, char **arguments) {
    mqc_model *model;
    mqc_session *session = NULL;
    mqc_decoder *decoder = NULL;
    char error[256];
    if (count != 3) return failed("usage: complete MODEL TEXT");
    if (mqc_model_open(arguments[1], NULL, &model, error, sizeof error)) return failed(error);
    const mqc_tokenizer *tokenizer = mqc_model_tokenizer(model);
    mqc_status status = tokenizer ? mqc_session_open(model, THREADS, &session) : MQC_ERROR_UNSUPPORTED;
    if (!status) status = mqc_decoder_open(tokenizer, &decoder);
    int result =
        status ? failed(mqc_status_text(status)) : complete(tokenizer, session, decoder, arguments[2]);
    mqc_decoder_close(decoder);
    mqc_session_close(session);
    mqc_model_close(model);
    return result;
}
