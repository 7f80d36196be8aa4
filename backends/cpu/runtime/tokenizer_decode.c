/* Text of ids, at once or as they come. */
#include "tokenizer.h"

static const uint8_t replacement[] = {0xEF, 0xBF, 0xBD}; /* U+FFFD */

struct mqc_decoder {
    const mqc_tokenizer *t;
    Buffer ids;           /* int32_t: those whose text was given out last, and those that wait */
    uint32_t given;       /* how many of them were given out */
    Buffer before, after; /* their text, and that of all */
};

/* Bytes as text: what is no UTF-8 becomes U+FFFD, once for each part that could begin a character. */
static int add_lossy(const mqc_allocator *a, Buffer *text, const uint8_t *bytes, size_t count) {
    for (size_t at = 0; at < count;) {
        size_t good, length = mqct_valid_character(bytes + at, count - at, &good);
        if (length ? !mqct_buffer_add(a, text, bytes + at, length)
                   : !mqct_buffer_add(a, text, replacement, sizeof replacement))
            return 0;
        at += length ? length : good;
    }
    return 1;
}

/* Tokens of bytes that stand together: their text, or as many U+FFFD. */
static int add_bytes(const mqc_allocator *a, Buffer *text, Buffer *bytes) {
    int valid = mqct_valid_utf8(bytes->data, bytes->used);
    for (size_t i = 0; !valid && i < bytes->used; i++)
        if (!mqct_buffer_add(a, text, replacement, sizeof replacement)) return 0;
    if (valid && !mqct_buffer_add(a, text, bytes->data, bytes->used)) return 0;
    bytes->used = 0;
    return 1;
}

static int join_ids(const mqc_tokenizer *t, const int32_t *ids, size_t count, Buffer *text, Buffer *bytes) {
    const mqc_allocator *a = &t->allocator;
    for (size_t i = 0; i < count; i++) {
        if (ids[i] < 0 || (uint32_t)ids[i] >= t->settings.vocabulary) continue;
        uint8_t kind = t->kinds[ids[i]];
        Text piece = string(&t->texts, (uint32_t)ids[i]);
        if (kind == KIND_LEFT_OUT) continue;
        int joins = t->settings.byte_text || kind == KIND_BYTE;
        if (!joins && !add_bytes(a, text, bytes)) return 0;
        if (!mqct_buffer_add(a, joins ? bytes : text, piece.data, piece.bytes)) return 0;
    }
    if (t->settings.byte_text) return add_lossy(a, text, bytes->data, bytes->used);
    return add_bytes(a, text, bytes);
}

/* Replaces what `text` holds. */
static mqc_status decode(const mqc_tokenizer *t, const int32_t *ids, size_t count, Buffer *text) {
    Buffer bytes = {0};
    text->used = 0;
    int made = join_ids(t, ids, count, text, &bytes);
    mqct_buffer_release(&t->allocator, &bytes);
    if (!made) return MQC_ERROR_MEMORY;
    size_t spaces = 0;
    while (spaces < t->settings.strip && spaces < text->used && text->data[spaces] == ' ') spaces++;
    if (spaces) memmove(text->data, text->data + spaces, text->used - spaces);
    text->used -= spaces;
    return MQC_OK;
}

static mqc_status give_text(const uint8_t *from, size_t found, char *text, size_t capacity, size_t *bytes) {
    *bytes = found;
    if (found > capacity) return MQC_ERROR_FULL;
    if (found) memcpy(text, from, found);
    return MQC_OK;
}

mqc_status mqc_tokenizer_decode(const mqc_tokenizer *tokenizer, const int32_t *ids, size_t count, char *text,
                                size_t capacity, size_t *bytes) {
    if (!tokenizer || !bytes || (!ids && count) || (!text && capacity)) return MQC_ERROR_ARGUMENT;
    Buffer made = {0};
    *bytes = 0;
    mqc_status status = decode(tokenizer, ids, count, &made);
    if (!status) status = give_text(made.data, made.used, text, capacity, bytes);
    mqct_buffer_release(&tokenizer->allocator, &made);
    return status;
}

/* ---- as ids come */

static const int32_t *seen(const mqc_decoder *decoder) {
    return (const int32_t *)(const void *)decoder->ids.data;
}

/* As in the beginning: behind a token whose text ends in a letter, for some decoders take a space from the
 * front of a whole text. */
static mqc_status begin(mqc_decoder *decoder) {
    int32_t behind = decoder->t->settings.behind;
    decoder->ids.used = 0;
    decoder->given = behind != NONE;
    if (behind != NONE && !mqct_buffer_add(&decoder->t->allocator, &decoder->ids, &behind, sizeof behind))
        return MQC_ERROR_MEMORY;
    return MQC_OK;
}

mqc_status mqc_decoder_open(const mqc_tokenizer *tokenizer, mqc_decoder **decoder) {
    if (!tokenizer || !decoder) return MQC_ERROR_ARGUMENT;
    const mqc_allocator *a = &tokenizer->allocator;
    mqc_decoder *made = a->allocate(a->context, sizeof *made);
    *decoder = NULL;
    if (!made) return MQC_ERROR_MEMORY;
    memset(made, 0, sizeof *made);
    made->t = tokenizer;
    mqc_status status = begin(made);
    if (status)
        mqc_decoder_close(made);
    else
        *decoder = made;
    return status;
}

void mqc_decoder_close(mqc_decoder *decoder) {
    if (!decoder) return;
    const mqc_allocator *a = &decoder->t->allocator;
    mqct_buffer_release(a, &decoder->ids);
    mqct_buffer_release(a, &decoder->before);
    mqct_buffer_release(a, &decoder->after);
    a->release(a->context, decoder);
}

static size_t characters(const Buffer *text) {
    size_t count = 0;
    for (size_t i = 0; i < text->used; i++) count += (text->data[i] & 0xC0) != 0x80;
    return count;
}

/* What the ids that wait add to the text: `after` from *at on, or nothing. */
static mqc_status new_text(mqc_decoder *decoder, size_t *at) {
    const mqc_tokenizer *t = decoder->t;
    mqc_status status = decode(t, seen(decoder), decoder->given, &decoder->before);
    if (!status) status = decode(t, seen(decoder), decoder->ids.used / sizeof(int32_t), &decoder->after);
    size_t there = characters(&decoder->before);
    const Buffer *after = &decoder->after;
    for (*at = 0; !status && *at < after->used; ++*at)
        if ((after->data[*at] & 0xC0) != 0x80 && !there--) break;
    return status;
}

mqc_status mqc_decoder_push(mqc_decoder *decoder, int32_t id, char *text, size_t capacity, size_t *bytes) {
    if (!decoder || !bytes || (!text && capacity)) return MQC_ERROR_ARGUMENT;
    Buffer *ids = &decoder->ids;
    const Buffer *after = &decoder->after;
    size_t at, mark = sizeof replacement, count = ids->used / sizeof id;
    *bytes = 0;
    if (!mqct_buffer_add(&decoder->t->allocator, ids, &id, sizeof id)) return MQC_ERROR_MEMORY;
    mqc_status status = new_text(decoder, &at);
    int cut = after->used >= mark && !memcmp(after->data + after->used - mark, replacement, mark);
    int waits = !status && (cut || at == after->used);
    if (waits) return MQC_OK;
    if (!status) status = give_text(after->data + at, after->used - at, text, capacity, bytes);
    if (status) {
        ids->used -= sizeof id;
        return status;
    }
    /* Decoding begins with what was given out now, so that a long text is not decoded again and again. */
    memmove(ids->data, ids->data + decoder->given * sizeof id, ids->used - decoder->given * sizeof id);
    ids->used -= decoder->given * sizeof id;
    decoder->given = (uint32_t)(count + 1 - decoder->given);
    return MQC_OK;
}

mqc_status mqc_decoder_finish(mqc_decoder *decoder, char *text, size_t capacity, size_t *bytes) {
    if (!decoder || !bytes || (!text && capacity)) return MQC_ERROR_ARGUMENT;
    size_t at;
    *bytes = 0;
    mqc_status status = new_text(decoder, &at);
    if (!status)
        status = give_text(decoder->after.data + at, decoder->after.used - at, text, capacity, bytes);
    return status ? status : begin(decoder);
}
