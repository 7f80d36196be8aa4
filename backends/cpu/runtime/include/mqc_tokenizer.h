/* Text to token ids and back, from the tables that mqc's export wrote (`tokenizer.bin`).
 *
 * Texts are UTF-8 of at most 256 MiB and need no zero at the end. A text that is no valid UTF-8 (overlong
 * forms and surrogates included) is refused with MQC_ERROR_ARGUMENT: replace what is wrong before, if it is
 * to be accepted. A tokenizer does not change once it is open, and all threads may use it at once. A decoder
 * serves one thread at a time. Nothing here ends the process or prints.
 */
#ifndef MQC_TOKENIZER_H
#define MQC_TOKENIZER_H

#include "mqc_common.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mqc_tokenizer mqc_tokenizer;
typedef struct mqc_decoder mqc_decoder;

enum {
    MQC_PARSE_SPECIAL = 1,    /* texts of control tokens are these tokens; without it they are text */
    MQC_ADD_START = 2,        /* the text begins a sequence: what stands in front of every text comes first,
                                 unless the model's own prefix has it */
    MQC_GENERATION_PROMPT = 4 /* a conversation ends where the assistant's answer begins */
};

/* Opens the tables. data: contents of tokenizer.bin, aligned to 8 bytes; they must stay as they are until
 * the tokenizer is closed. Everything in them is checked: MQC_ERROR_DAMAGED if it is not as it should be.
 * allocator: may be NULL. */
MQC_API mqc_status mqc_tokenizer_open(const void *data, size_t bytes, const mqc_allocator *allocator,
                              mqc_tokenizer **tokenizer);

/* NULL is no error. */
MQC_API void mqc_tokenizer_close(mqc_tokenizer *tokenizer);

/* Ids of a text. ids: room for `capacity`, may be NULL if that is 0. *count: how many ids there are, also
 * if MQC_ERROR_FULL says that there is no room for them; then `ids` holds the first ones. flags:
 * MQC_PARSE_SPECIAL, MQC_ADD_START. */
MQC_API mqc_status mqc_tokenizer_encode(const mqc_tokenizer *tokenizer, const char *text, size_t bytes, unsigned flags,
                                int32_t *ids, size_t capacity, size_t *count);

/* Ids of a conversation by the model's chat template. roles[i]: "system", "user" or "assistant", zero at the
 * end; contents[i]: bytes[i] bytes. ids, capacity, count: as above. flags: MQC_PARSE_SPECIAL (else a user
 * cannot end the own turn by typing a control token), MQC_GENERATION_PROMPT.
 * MQC_ERROR_ARGUMENT: no such role, or the template has no form for roles in this order (a system message
 * stands first). MQC_ERROR_UNSUPPORTED: there is no template, or it could not be compiled, and
 * mqc_tokenizer_template_reason says why: then the app writes the text itself and encodes it with
 * MQC_PARSE_SPECIAL. Or a content holds a text that the template treats in its own way, such as </think>: take
 * an answer's reasoning away before it goes into a conversation. */
MQC_API mqc_status mqc_tokenizer_chat(const mqc_tokenizer *tokenizer, const char *const *roles,
                              const char *const *contents, const size_t *bytes, size_t messages,
                              unsigned flags, int32_t *ids, size_t capacity, size_t *count);

/* Why there is no chat template; NULL if there is one. */
MQC_API const char *mqc_tokenizer_template_reason(const mqc_tokenizer *tokenizer);

/* Whether an id ends an answer. */
MQC_API int mqc_tokenizer_is_end(const mqc_tokenizer *tokenizer, int32_t id);

/* Text of ids, without a zero at the end. Control tokens and ids that the tokenizer does not have are left
 * out. *bytes: how many there are, also if MQC_ERROR_FULL says that there is no room; then nothing is
 * written. */
MQC_API mqc_status mqc_tokenizer_decode(const mqc_tokenizer *tokenizer, const int32_t *ids, size_t count, char *text,
                                size_t capacity, size_t *bytes);

/* Text of ids that come one after another behind a prompt. */
MQC_API mqc_status mqc_decoder_open(const mqc_tokenizer *tokenizer, mqc_decoder **decoder);

/* Text that is whole with this id: *bytes of valid UTF-8, often none. MQC_ERROR_FULL: *bytes are needed, and
 * the id was not taken: call again with more room. */
MQC_API mqc_status mqc_decoder_push(mqc_decoder *decoder, int32_t id, char *text, size_t capacity, size_t *bytes);

/* What is left at the end of an answer: characters that never became whole are U+FFFD. The decoder is then
 * ready for another answer. MQC_ERROR_FULL: as above. */
MQC_API mqc_status mqc_decoder_finish(mqc_decoder *decoder, char *text, size_t capacity, size_t *bytes);

/* NULL is no error. */
MQC_API void mqc_decoder_close(mqc_decoder *decoder);

#ifdef __cplusplus
}
#endif

#endif
