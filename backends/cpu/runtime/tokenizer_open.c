/* Opens the tables of a tokenizer. Each number in them is checked, so that what reads them need not. */
#include "tokenizer.h"

enum { VERSION = 1, HEADER_BYTES = 24, MOST_STEPS = 64, MOST_MEMOS = 1024, PAGES = 0x1100 };

/* As mqc/backends/cpu/tokenizer_tables.py writes them. */
enum {
    SETTINGS, TEXT_OFFSETS, TEXTS, KINDS, BYTE_IDS,
    KEY_OFFSETS, KEYS, KEY_IDS, KEY_SLOTS, MERGES, MERGE_SLOTS,
    RAW_OFFSETS, RAW, RAW_IDS, RAW_FLAGS,
    NORMALIZED_OFFSETS, NORMALIZED, NORMALIZED_IDS, NORMALIZED_FLAGS,
    CONTROL_OFFSETS, CONTROL, CONTROL_IDS, CONTROL_FLAGS,
    STEPS_OF_TEXT, LITERAL_OFFSETS, LITERALS, CODE,
    PAGES_OF_KINDS, KINDS_OF_CHARACTERS, CLASSES,
    ORDERS, DECOMPOSITIONS, DECOMPOSED, COMPOSITIONS,
    START, IN_FRONT, ENDS, JOINTS, TRIMS, WATCHED_OFFSETS, WATCHED, REASON,
    SECTIONS
};

typedef struct {
    const uint8_t *data;
    size_t bytes;
} Section;

static void *allocate_plainly(void *context, size_t bytes) {
    (void)context;
    return malloc(bytes);
}

static void release_plainly(void *context, void *memory) {
    (void)context;
    free(memory);
}

/* CRC-32 as in zip files. */
static uint32_t checksum(const uint8_t *data, size_t bytes) {
    uint32_t table[256], sum = 0xFFFFFFFFu;
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++) value = value >> 1 ^ (value & 1 ? 0xEDB88320u : 0);
        table[i] = value;
    }
    for (size_t i = 0; i < bytes; i++) sum = sum >> 8 ^ table[(sum ^ data[i]) & 255];
    return ~sum;
}

static int find_sections(const uint8_t *data, size_t bytes, Section *sections) {
    uint32_t head[4];
    const size_t places = HEADER_BYTES + SECTIONS * 8;
    if (bytes < places || bytes > UINT32_MAX || memcmp(data, "mqctoken", 8)) return 0;
    memcpy(head, data + 8, sizeof head);
    if (head[0] != VERSION || head[1] != SECTIONS || head[2] != bytes) return 0;
    if (head[3] != checksum(data + HEADER_BYTES, bytes - HEADER_BYTES)) return 0;
    for (int i = 0; i < SECTIONS; i++) {
        uint32_t place[2];
        memcpy(place, data + HEADER_BYTES + i * 8, sizeof place);
        if (place[0] % 8 || place[0] < places || place[0] > bytes || place[1] > bytes - place[0]) return 0;
        sections[i].data = data + place[0];
        sections[i].bytes = place[1];
    }
    return 1;
}

/* An array of elements of some size: its length, and whether that is whole. */
static int array(const Section *section, size_t element, uint32_t *count) {
    *count = (uint32_t)(section->bytes / element);
    return section->bytes % element == 0;
}

static int find_strings(const Section *sections, int first, int utf8, Strings *strings) {
    uint32_t offsets;
    const Section *data = sections + first + 1;
    if (!array(sections + first, 4, &offsets) || offsets < 1) return 0;
    strings->offsets = (const uint32_t *)(const void *)sections[first].data;
    strings->data = data->data;
    strings->count = offsets - 1;
    if (strings->offsets[0] || strings->offsets[strings->count] != data->bytes) return 0;
    for (uint32_t i = 0; i < strings->count; i++) {
        if (strings->offsets[i] > strings->offsets[i + 1]) return 0;
        if (strings->offsets[i + 1] > data->bytes) return 0;
        if (utf8 && !mqct_valid_utf8(string(strings, i).data, string(strings, i).bytes)) return 0;
    }
    return 1;
}

/* Ids in [least, limit). */
static int find_ids(const Section *section, int32_t least, int64_t limit, const int32_t **ids,
                    uint32_t *count) {
    if (!array(section, 4, count)) return 0;
    *ids = (const int32_t *)(const void *)section->data;
    for (uint32_t i = 0; i < *count; i++)
        if ((*ids)[i] < least || (*ids)[i] >= limit) return 0;
    return 1;
}

/* A hash table that is at most half full, of numbers below a limit. */
static int find_slots(const Section *section, uint32_t limit, const uint32_t **slots, uint32_t *mask) {
    uint32_t count, full = 0;
    if (!array(section, 4, &count) || !count || count & (count - 1)) return 0;
    *slots = (const uint32_t *)(const void *)section->data;
    *mask = count - 1;
    for (uint32_t i = 0; i < count; i++) {
        if ((*slots)[i] == UINT32_MAX) continue;
        if ((*slots)[i] >= limit) return 0;
        full++;
    }
    return full <= count / 2;
}

static int find_added(const Section *sections, int first, uint32_t vocabulary, Added *added) {
    uint32_t ids, flags;
    if (!find_strings(sections, first, 1, &added->texts)) return 0;
    if (!find_ids(sections + first + 2, 0, vocabulary, &added->ids, &ids)) return 0;
    if (!array(sections + first + 3, 4, &flags)) return 0;
    added->flags = (const uint32_t *)(const void *)sections[first + 3].data;
    if (ids != added->texts.count || flags != ids) return 0;
    for (uint32_t i = 0; i < ids; i++) {
        Text text = string(&added->texts, i);
        if (!text.bytes) return 0;
        if (!i) continue;
        Text before = string(&added->texts, i - 1);
        int order = memcmp(before.data, text.data, before.bytes < text.bytes ? before.bytes : text.bytes);
        if (order > 0 || (!order && before.bytes >= text.bytes)) return 0;
    }
    return 1;
}

static int find_vocabulary(const Section *sections, mqc_tokenizer *t) {
    const Settings *s = &t->settings;
    uint32_t count;
    if (!find_strings(sections, TEXT_OFFSETS, 0, &t->texts) || t->texts.count != s->vocabulary) return 0;
    if (sections[KINDS].bytes != s->vocabulary) return 0;
    t->kinds = sections[KINDS].data;
    for (uint32_t i = 0; i < s->vocabulary; i++) {
        Text text = string(&t->texts, i);
        if (t->kinds[i] > KIND_BYTE || (t->kinds[i] == KIND_BYTE && (text.bytes != 1 || s->byte_text)))
            return 0;
        if (t->kinds[i] == KIND_TEXT && !s->byte_text && !mqct_valid_utf8(text.data, text.bytes)) return 0;
    }
    if (!find_ids(sections + BYTE_IDS, NONE, s->vocabulary, &t->byte_ids, &count) || count != 256) return 0;
    if (!find_strings(sections, KEY_OFFSETS, 0, &t->keys)) return 0;
    if (!find_ids(sections + KEY_IDS, 0, s->vocabulary, &t->key_ids, &count) || count != t->keys.count)
        return 0;
    if (!find_slots(sections + KEY_SLOTS, count, &t->key_slots, &t->key_mask)) return 0;
    if (!array(sections + MERGES, sizeof(Merge), &t->merge_count)) return 0;
    t->merges = (const Merge *)(const void *)sections[MERGES].data;
    const int32_t *parts;
    Section merges = sections[MERGES];
    if (!find_ids(&merges, 0, s->vocabulary, &parts, &count)) return 0;
    if (!find_slots(sections + MERGE_SLOTS, t->merge_count, &t->merge_slots, &t->merge_mask)) return 0;
    return find_added(sections, RAW_OFFSETS, s->vocabulary, &t->raw) &&
           find_added(sections, NORMALIZED_OFFSETS, s->vocabulary, &t->normalized) &&
           find_added(sections, CONTROL_OFFSETS, s->vocabulary, &t->control);
}

/* A matcher ends because each loop goes through an instruction with a memo. */
static int check_code(const mqc_tokenizer *t) {
    uint32_t count = t->code_count;
    if (count && t->code[count - 1].op != OP_MATCH) return 0;
    for (uint32_t i = 0; i < count; i++) {
        const Instruction *in = t->code + i;
        int remembers = in->op == OP_SPLIT || in->op == OP_SKIP,
            jumps = in->op == OP_SPLIT || in->op == OP_JUMP;
        if (in->op >= OPS || (remembers && in->memo >= t->settings.memos)) return 0;
        if (jumps && (in->x >= count || (in->op == OP_SPLIT && in->y >= count))) return 0;
        if (!jumps && in->op != OP_MATCH && in->x >= t->class_count) return 0;
        if (in->op == OP_JUMP && in->x <= i && t->code[in->x].op != OP_SPLIT && t->code[in->x].op != OP_SKIP)
            return 0;
    }
    return 1;
}

static int check_steps(const mqc_tokenizer *t) {
    if (t->step_count > MOST_STEPS || t->settings.normalizer > t->step_count) return 0;
    for (uint32_t i = 0; i < t->step_count; i++) {
        const Step *step = t->steps + i;
        int splits = step->op == STEP_SPLIT, replaces = step->op == STEP_REPLACE;
        if (step->op >= STEPS || (splits && i < t->settings.normalizer)) return 0;
        if (splits && (step->x >= t->code_count || step->y > SPLIT_CONTIGUOUS)) return 0;
        if ((replaces || step->op == STEP_PREPEND) && step->x >= t->literals.count) return 0;
        if (replaces && (step->y >= t->literals.count || !string(&t->literals, step->x).bytes)) return 0;
        if (step->op == STEP_NORMALIZE && i >= t->settings.normalizer) return 0;
    }
    return 1;
}

static int find_patterns(const Section *sections, mqc_tokenizer *t) {
    uint32_t pages, kinds;
    if (!array(sections + STEPS_OF_TEXT, sizeof(Step), &t->step_count)) return 0;
    if (!array(sections + CODE, sizeof(Instruction), &t->code_count)) return 0;
    if (!array(sections + PAGES_OF_KINDS, 2, &pages) || pages != PAGES) return 0;
    if (!array(sections + KINDS_OF_CHARACTERS, 256, &kinds)) return 0;
    if (!array(sections + CLASSES, 32, &t->class_count)) return 0;
    t->steps = (const Step *)(const void *)sections[STEPS_OF_TEXT].data;
    t->code = (const Instruction *)(const void *)sections[CODE].data;
    t->pages = (const uint16_t *)(const void *)sections[PAGES_OF_KINDS].data;
    t->kinds_of = sections[KINDS_OF_CHARACTERS].data;
    t->classes = (const uint8_t(*)[32])(const void *)sections[CLASSES].data;
    for (uint32_t i = 0; i < pages; i++)
        if (t->pages[i] >= kinds) return 0;
    const Settings *s = &t->settings;
    if (s->space_class >= t->class_count || s->trim_class >= t->class_count || s->memos > MOST_MEMOS)
        return 0;
    return find_strings(sections, LITERAL_OFFSETS, 1, &t->literals) && check_code(t) && check_steps(t);
}

static int scalar(uint32_t code) { return code < 0xD800 || (code > 0xDFFF && code < 0x110000); }

static int find_normalization(const Section *sections, mqc_tokenizer *t) {
    if (!array(sections + ORDERS, sizeof(CodeEntry), &t->order_count)) return 0;
    if (!array(sections + DECOMPOSITIONS, sizeof(CodeEntry), &t->decomposition_count)) return 0;
    if (!array(sections + DECOMPOSED, 4, &t->decomposed_count)) return 0;
    if (!array(sections + COMPOSITIONS, sizeof(Composition), &t->composition_count)) return 0;
    t->orders = (const CodeEntry *)(const void *)sections[ORDERS].data;
    t->decompositions = (const CodeEntry *)(const void *)sections[DECOMPOSITIONS].data;
    t->decomposed = (const uint32_t *)(const void *)sections[DECOMPOSED].data;
    t->compositions = (const Composition *)(const void *)sections[COMPOSITIONS].data;
    for (uint32_t i = 0; i < t->order_count; i++)
        if (t->orders[i].value > 255 || (i && t->orders[i].code <= t->orders[i - 1].code)) return 0;
    for (uint32_t i = 0; i < t->decomposition_count; i++) {
        const CodeEntry *entry = t->decompositions + i;
        if (i && entry->code <= entry[-1].code) return 0;
        if (entry->value > t->decomposed_count || entry->count > t->decomposed_count - entry->value) return 0;
        if (entry->count < 1 || entry->count > 32) return 0;
    }
    for (uint32_t i = 0; i < t->decomposed_count; i++)
        if (!scalar(t->decomposed[i])) return 0;
    for (uint32_t i = 0; i < t->composition_count; i++) {
        const Composition *entry = t->compositions + i;
        if (!scalar(entry->made)) return 0;
        if (i && (entry->first < entry[-1].first ||
                  (entry->first == entry[-1].first && entry->second <= entry[-1].second)))
            return 0;
    }
    return 1;
}

static int find_conversations(const Section *sections, mqc_tokenizer *t) {
    uint32_t joints, trims;
    const Section *reason = sections + REASON;
    if (!find_ids(sections + START, 0, t->settings.vocabulary, &t->start, &t->start_count)) return 0;
    if (!find_ids(sections + IN_FRONT, 0, t->settings.vocabulary, &t->in_front, &t->in_front_count)) return 0;
    if (!find_ids(sections + ENDS, 0, INT64_MAX, &t->ends, &t->end_count)) return 0;
    if (!find_ids(sections + JOINTS, NONE, t->literals.count, &t->joints, &joints)) return 0;
    if (!array(sections + TRIMS, 4, &trims)) return 0;
    t->trims = (const uint32_t *)(const void *)sections[TRIMS].data;
    t->reason = (const char *)reason->data;
    if (joints != FROMS * TOS || trims != ROLES) return 0;
    if (!find_strings(sections, WATCHED_OFFSETS, 1, &t->watched)) return 0;
    for (uint32_t i = 0; i < t->watched.count; i++)
        if (!string(&t->watched, i).bytes) return 0;
    return reason->bytes && !reason->data[reason->bytes - 1];
}

mqc_status mqc_tokenizer_open(const void *data, size_t bytes, const mqc_allocator *allocator,
                              mqc_tokenizer **tokenizer) {
    const mqc_allocator plain = {allocate_plainly, release_plainly, NULL};
    Section sections[SECTIONS];
    if (!data || !tokenizer || (uintptr_t)data % 8) return MQC_ERROR_ARGUMENT;
    *tokenizer = NULL;
    if (!allocator) allocator = &plain;
    if (!find_sections(data, bytes, sections)) return MQC_ERROR_DAMAGED;
    mqc_tokenizer *t = allocator->allocate(allocator->context, sizeof *t);
    if (!t) return MQC_ERROR_MEMORY;
    memset(t, 0, sizeof *t);
    t->allocator = *allocator;
    int good = sections[SETTINGS].bytes == sizeof t->settings;
    if (good) {
        memcpy(&t->settings, sections[SETTINGS].data, sizeof t->settings);
        const Settings *s = &t->settings;
        int64_t ids[] = {s->unknown, s->behind};
        good = s->vocabulary <= INT32_MAX;
        for (int i = 0; i < 2; i++) good = good && ids[i] >= NONE && ids[i] < (int64_t)s->vocabulary;
    }
    good = good && find_vocabulary(sections, t) && find_patterns(sections, t);
    good = good && find_normalization(sections, t) && find_conversations(sections, t);
    if (!good) {
        allocator->release(allocator->context, t);
        return MQC_ERROR_DAMAGED;
    }
    *tokenizer = t;
    return MQC_OK;
}

void mqc_tokenizer_close(mqc_tokenizer *tokenizer) {
    if (!tokenizer) return;
    mqc_allocator allocator = tokenizer->allocator;
    allocator.release(allocator.context, tokenizer);
}

int mqc_tokenizer_is_end(const mqc_tokenizer *tokenizer, int32_t id) {
    for (uint32_t i = 0; i < tokenizer->end_count; i++)
        if (tokenizer->ends[i] == id) return 1;
    return 0;
}

const char *mqc_tokenizer_template_reason(const mqc_tokenizer *tokenizer) {
    return tokenizer->settings.compiled ? NULL : tokenizer->reason;
}
