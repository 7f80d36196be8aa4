/* Memory that grows, and UTF-8. */
#include "tokenizer.h"

int mqct_buffer_grow(const mqc_allocator *allocator, Buffer *buffer, size_t bytes) {
    if (buffer->data && bytes <= buffer->room - buffer->used) return 1;
    if (bytes > SIZE_MAX / 4 - buffer->used) return 0;
    size_t room = buffer->used + bytes;
    if (room < buffer->room * 2) room = buffer->room * 2;
    if (room < 256) room = 256;
    uint8_t *data = allocator->allocate(allocator->context, room);
    if (!data) return 0;
    if (buffer->used) memcpy(data, buffer->data, buffer->used);
    if (buffer->data) allocator->release(allocator->context, buffer->data);
    buffer->data = data;
    buffer->room = room;
    return 1;
}

int mqct_buffer_add(const mqc_allocator *allocator, Buffer *buffer, const void *data, size_t bytes) {
    if (!mqct_buffer_grow(allocator, buffer, bytes)) return 0;
    if (bytes) memcpy(buffer->data + buffer->used, data, bytes);
    buffer->used += bytes;
    return 1;
}

void mqct_buffer_release(const mqc_allocator *allocator, Buffer *buffer) {
    if (buffer->data) allocator->release(allocator->context, buffer->data);
    memset(buffer, 0, sizeof *buffer);
}

size_t mqct_valid_character(const uint8_t *text, size_t bytes, size_t *good) {
    uint8_t lead = text[0], low = 0x80, high = 0xBF;
    size_t length = lead < 0x80   ? 1
                    : lead < 0xC2 ? 0
                    : lead < 0xE0 ? 2
                    : lead < 0xF0 ? 3
                    : lead < 0xF5 ? 4
                                  : 0;
    /* Of the second byte some leads allow a part only: no overlong forms, surrogates, or more than 10FFFF. */
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
    *good = 1;
    while (*good < length && *good < bytes) {
        uint8_t byte = text[*good];
        if (byte < low || byte > high) return 0;
        low = 0x80;
        high = 0xBF;
        ++*good;
    }
    return *good == length ? length : 0;
}

int mqct_valid_utf8(const uint8_t *text, size_t bytes) {
    for (size_t at = 0; at < bytes;) {
        size_t good, length = mqct_valid_character(text + at, bytes - at, &good);
        if (!length) return 0;
        at += length;
    }
    return 1;
}

size_t mqct_write_code_point(uint32_t code, uint8_t *text) {
    if (code < 0x80) {
        text[0] = (uint8_t)code;
        return 1;
    }
    size_t length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = length - 1; i; i--, code >>= 6) text[i] = (uint8_t)(0x80 | (code & 0x3F));
    text[0] = (uint8_t)(0xF00u >> length | code);
    return length;
}
