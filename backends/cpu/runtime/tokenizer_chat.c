/* Conversations by a compiled chat template: literals between contents, chosen by the roles on both sides.
 *
 * Control tokens that stand in contents are text. As in mqc's Tokenizer, private characters stand in for them
 * while the template's own control tokens are found. */
#include "tokenizer.h"

enum { PRIVATE = 0xF0000, PRIVATE_BYTES = 4, TRIM_LEFT = 1, TRIM_RIGHT = 2 };

typedef struct {
    Work work;
    Buffer rendered, content, other;
    Buffer hidden; /* uint32_t: numbers of control tokens that contents hold, in the order of their ranks */
} Chat;

static const char *const names[ROLES] = {"system", "user", "assistant"};

static int role_number(const char *role) {
    for (int i = 0; i < ROLES; i++)
        if (role && !strcmp(role, names[i])) return i;
    return NONE;
}

static int holds(const uint8_t *text, size_t bytes, Text part) {
    for (size_t at = 0; at + part.bytes <= bytes; at++)
        if (text[at] == part.data[0] && !memcmp(text + at, part.data, part.bytes)) return 1;
    return 0;
}

/* chat->content with a text in place of another. */
static int replace(Chat *chat, Text found, Text put) {
    const mqc_allocator *a = &chat->work.t->allocator;
    const uint8_t *data = chat->content.data;
    size_t bytes = chat->content.used;
    if (!holds(data, bytes, found)) return 1;
    chat->other.used = 0;
    for (size_t at = 0; at < bytes;) {
        int replaces = bytes - at >= found.bytes && !memcmp(data + at, found.data, found.bytes);
        if (!mqct_buffer_add(a, &chat->other, replaces ? put.data : data + at, replaces ? put.bytes : 1))
            return 0;
        at += replaces ? found.bytes : 1;
    }
    Buffer made = chat->other;
    chat->other = chat->content;
    chat->content = made;
    return 1;
}

/* Control tokens to private characters, or back. */
static int exchange(Chat *chat, int back) {
    const Strings *control = &chat->work.t->control.texts;
    const uint32_t *hidden = (const uint32_t *)(const void *)chat->hidden.data;
    for (uint32_t i = 0; i < chat->hidden.used / sizeof *hidden; i++) {
        uint8_t code[PRIVATE_BYTES];
        Text private = {code, (uint32_t)mqct_write_code_point(PRIVATE + i, code)},
             text = string(control, hidden[i]);
        if (!replace(chat, back ? private : text, back ? text : private)) return 0;
    }
    return 1;
}

/* Control tokens that contents hold. Longer ones come first, as their ranks say. */
static int find_hidden(Chat *chat, const char *const *contents, const size_t *bytes, size_t messages) {
    const mqc_tokenizer *t = chat->work.t;
    const Added *control = &t->control;
    for (uint32_t i = 0; i < control->texts.count; i++) {
        int found = 0;
        for (size_t m = 0; m < messages && !found; m++)
            found = holds((const uint8_t *)contents[m], bytes[m], string(&control->texts, i));
        if (found && !mqct_buffer_add(&t->allocator, &chat->hidden, &i, sizeof i)) return 0;
    }
    uint32_t *hidden = (uint32_t *)(void *)chat->hidden.data;
    for (size_t i = 1; i < chat->hidden.used / sizeof *hidden; i++) {
        uint32_t one = hidden[i];
        size_t at = i;
        for (; at && control->flags[hidden[at - 1]] > control->flags[one]; at--) hidden[at] = hidden[at - 1];
        hidden[at] = one;
    }
    return 1;
}

static int add_content(Chat *chat, int role, const char *text, size_t bytes) {
    const mqc_tokenizer *t = chat->work.t;
    chat->content.used = 0;
    if (!mqct_buffer_add(&t->allocator, &chat->content, text, bytes) || !exchange(chat, 0)) return 0;
    const uint8_t *data = chat->content.data;
    uint32_t all = (uint32_t)chat->content.used, first = all, last = 0; /* what is no space lies there */
    for (uint32_t at = 0; at < all;) {
        uint32_t here = at;
        if (in_class(t, t->settings.trim_class, kind_of(t, next_code_point(data, &at)))) continue;
        if (first == all) first = here;
        last = at;
    }
    uint32_t begin = t->trims[role] & TRIM_LEFT ? first : 0, end = t->trims[role] & TRIM_RIGHT ? last : all;
    if (end < begin) end = begin; /* spaces only */
    return mqct_buffer_add(&t->allocator, &chat->rendered, data + begin, end - begin);
}

static int add_joint(Chat *chat, int from, int to) {
    const mqc_tokenizer *t = chat->work.t;
    Text text = string(&t->literals, (uint32_t)t->joints[from * TOS + to]);
    return mqct_buffer_add(&t->allocator, &chat->rendered, text.data, text.bytes);
}

static mqc_status render(Chat *chat, const int *roles, const char *const *contents, const size_t *bytes,
                         size_t messages, int last) {
    const mqc_tokenizer *t = chat->work.t;
    int from = FROM_START;
    for (size_t i = 0; i <= messages; i++) {
        int to = i < messages ? roles[i] : last;
        if (t->joints[from * TOS + to] == NONE) return MQC_ERROR_ARGUMENT;
        if (!add_joint(chat, from, to)) return MQC_ERROR_MEMORY;
        if (i < messages && !add_content(chat, to, contents[i], bytes[i])) return MQC_ERROR_MEMORY;
        from = to;
    }
    return MQC_OK;
}

/* Text between two of the template's control tokens, in which all is text. */
static mqc_status encode_between(Chat *chat, const uint8_t *text, size_t bytes) {
    chat->content.used = 0;
    if (!bytes) return MQC_OK;
    if (!mqct_buffer_add(&chat->work.t->allocator, &chat->content, text, bytes) || !exchange(chat, 1))
        return MQC_ERROR_MEMORY;
    return mqct_encode_text(&chat->work, chat->content.data, chat->content.used);
}

static mqc_status encode_around(Chat *chat) {
    const mqc_tokenizer *t = chat->work.t;
    const uint8_t *text = chat->rendered.data;
    size_t bytes = chat->rendered.used, done = 0;
    for (size_t at = 0; at < bytes;) {
        int32_t found = mqct_longest_added(&t->control, text + at, bytes - at);
        if (found == NONE) {
            at++;
            continue;
        }
        mqc_status status = encode_between(chat, text + done, at - done);
        if (status) return status;
        const int32_t *id = t->control.ids + found;
        if (!mqct_buffer_add(&t->allocator, &chat->work.ids, id, sizeof *id)) return MQC_ERROR_MEMORY;
        done = at += string(&t->control.texts, (uint32_t)found).bytes;
    }
    return encode_between(chat, text + done, bytes - done);
}

static mqc_status encode_chat(Chat *chat, const int *roles, const char *const *contents, const size_t *bytes,
                              size_t messages, unsigned flags) {
    if (!(flags & MQC_PARSE_SPECIAL) && !find_hidden(chat, contents, bytes, messages))
        return MQC_ERROR_MEMORY;
    chat->work.parse_special = !chat->hidden.used;
    int last = flags & MQC_GENERATION_PROMPT ? TO_ANSWER : TO_END;
    mqc_status status = render(chat, roles, contents, bytes, messages, last);
    if (status) return status;
    if (chat->hidden.used) return encode_around(chat);
    return mqct_encode_text(&chat->work, chat->rendered.data, chat->rendered.used);
}

/* Ids without those that the template wrote and that the model's prefix has. */
static mqc_status give_chat(const Work *work, int32_t *ids, size_t capacity, size_t *count) {
    const mqc_tokenizer *t = work->t;
    const int32_t *made = (const int32_t *)(const void *)work->ids.data;
    size_t found = work->ids.used / sizeof *made, front = t->start_count ? 0 : t->in_front_count;
    if (found < front || !front || memcmp(made, t->in_front, front * sizeof *made)) front = 0;
    return mqct_give_ids(found ? made + front : NULL, found - front, ids, capacity, count);
}

/* Roles by number, if roles and contents are what they should be. */
static mqc_status check_messages(const mqc_tokenizer *t, const char *const *roles,
                                 const char *const *contents, const size_t *bytes, size_t messages,
                                 int *numbers) {
    size_t left = MAX_TEXT;
    for (size_t i = 0; i < messages; i++) {
        numbers[i] = role_number(roles[i]);
        if (numbers[i] == NONE || bytes[i] > left || (!contents[i] && bytes[i])) return MQC_ERROR_ARGUMENT;
        if (!mqct_valid_utf8((const uint8_t *)contents[i], bytes[i])) return MQC_ERROR_ARGUMENT;
        for (uint32_t k = 0; k < t->watched.count; k++)
            if (holds((const uint8_t *)contents[i], bytes[i], string(&t->watched, k)))
                return MQC_ERROR_UNSUPPORTED;
        left -= bytes[i];
    }
    return MQC_OK;
}

mqc_status mqc_tokenizer_chat(const mqc_tokenizer *tokenizer, const char *const *roles,
                              const char *const *contents, const size_t *bytes, size_t messages,
                              unsigned flags, int32_t *ids, size_t capacity, size_t *count) {
    if (!tokenizer || !count || !roles || !contents || !bytes || (!ids && capacity))
        return MQC_ERROR_ARGUMENT;
    *count = 0;
    if (flags & ~(unsigned)(MQC_PARSE_SPECIAL | MQC_GENERATION_PROMPT)) return MQC_ERROR_ARGUMENT;
    if (!messages || messages > MAX_TEXT) return MQC_ERROR_ARGUMENT;
    if (!tokenizer->settings.compiled) return MQC_ERROR_UNSUPPORTED;
    const mqc_allocator *a = &tokenizer->allocator;
    int *numbers = a->allocate(a->context, messages * sizeof *numbers);
    if (!numbers) return MQC_ERROR_MEMORY;
    Chat chat;
    memset(&chat, 0, sizeof chat);
    chat.work.t = tokenizer;
    mqc_status status = check_messages(tokenizer, roles, contents, bytes, messages, numbers);
    if (!status) status = encode_chat(&chat, numbers, contents, bytes, messages, flags);
    if (!status) status = give_chat(&chat.work, ids, capacity, count);
    Buffer *buffers[] = {&chat.rendered, &chat.content, &chat.other, &chat.hidden};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) mqct_buffer_release(a, buffers[i]);
    mqct_work_release(&chat.work);
    a->release(a->context, numbers);
    return status;
}
