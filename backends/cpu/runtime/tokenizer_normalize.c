/* Unicode's normal forms: NFD and NFKD by what the tables decompose, NFC and NFKC by composing after it. */
#include "tokenizer.h"

/* While they are ordered, code points carry their canonical class. */
enum { CLASS_SHIFT = 24, CODE_MASK = 0xFFFFFF };
enum { HANGUL = 0xAC00, LEADS = 0x1100, VOWELS = 0x1161, TRAILS = 0x11A7 };
enum { LEAD_COUNT = 19, VOWEL_COUNT = 21, TRAIL_COUNT = 28, HANGUL_COUNT = 11172 };

static const CodeEntry *find_entry(const CodeEntry *entries, uint32_t count, uint32_t code) {
    uint32_t low = 0, high = count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (entries[middle].code < code)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && entries[low].code == code ? entries + low : NULL;
}

static int add_point(Work *work, uint32_t code) {
    const mqc_tokenizer *t = work->t;
    const CodeEntry *order = code < 0x80 ? NULL : find_entry(t->orders, t->order_count, code);
    uint32_t point = code | (order ? order->value << CLASS_SHIFT : 0);
    return work->points.used < MAX_WORK &&
           mqct_buffer_add(&t->allocator, &work->points, &point, sizeof point);
}

static int decompose(Work *work) {
    const mqc_tokenizer *t = work->t;
    for (uint32_t at = 0; at < work->text.used;) {
        uint32_t code = next_code_point(work->text.data, &at), syllable = code - HANGUL;
        WORK();
        if (syllable < HANGUL_COUNT) {
            uint32_t trail = syllable % TRAIL_COUNT, rest = syllable / TRAIL_COUNT;
            if (!add_point(work, LEADS + rest / VOWEL_COUNT) || !add_point(work, VOWELS + rest % VOWEL_COUNT))
                return 0;
            if (trail && !add_point(work, TRAILS + trail)) return 0;
            continue;
        }
        const CodeEntry *entry =
            code < 0x80 ? NULL : find_entry(t->decompositions, t->decomposition_count, code);
        if (!entry && !add_point(work, code)) return 0;
        for (uint32_t i = 0; entry && i < entry->count; i++)
            if (!add_point(work, t->decomposed[entry->value + i])) return 0;
    }
    return 1;
}

/* Marks that follow one another are sorted by their class; those of one class stay in order. */
static int order_marks(Work *work) {
    uint32_t *points = (uint32_t *)(void *)work->points.data;
    uint32_t count = (uint32_t)(work->points.used / 4), begin = 0, end;
    if (!mqct_buffer_grow(&work->t->allocator, &work->sorted, work->points.used)) return 0;
    uint32_t *sorted = (uint32_t *)(void *)work->sorted.data;
    for (; begin < count; begin = end) {
        end = begin + 1;
        if (!(points[begin] >> CLASS_SHIFT)) continue;
        while (end < count && points[end] >> CLASS_SHIFT) end++;
        if (end - begin < 2) continue;
        uint32_t places[256] = {0}, place = 0;
        for (uint32_t i = begin; i < end; i++) places[points[i] >> CLASS_SHIFT]++;
        for (int class = 0; class < 256; class ++) {
            uint32_t number = places[class];
            places[class] = place;
            place += number;
        }
        for (uint32_t i = begin; i < end; i++) sorted[places[points[i] >> CLASS_SHIFT]++] = points[i];
        memcpy(points + begin, sorted, (size_t)(end - begin) * 4);
    }
    return 1;
}

/* The character that two make together, 0 if there is none. */
static uint32_t composed(const mqc_tokenizer *t, uint32_t first, uint32_t second) {
    uint32_t lead = first - LEADS, vowel = second - VOWELS, syllable = first - HANGUL,
             trail = second - TRAILS;
    if (lead < LEAD_COUNT && vowel < VOWEL_COUNT) return HANGUL + (lead * VOWEL_COUNT + vowel) * TRAIL_COUNT;
    if (syllable < HANGUL_COUNT && syllable % TRAIL_COUNT == 0 && trail && trail < TRAIL_COUNT)
        return first + trail;
    uint32_t low = 0, high = t->composition_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const Composition *entry = t->compositions + middle;
        if (entry->first < first || (entry->first == first && entry->second < second))
            low = middle + 1;
        else
            high = middle;
    }
    const Composition *entry = t->compositions + low;
    return low < t->composition_count && entry->first == first && entry->second == second ? entry->made : 0;
}

/* A mark joins the last character of class 0, unless one of its own class or a higher one stands between. */
static void compose_points(Work *work) {
    uint32_t *points = (uint32_t *)(void *)work->points.data, count = (uint32_t)(work->points.used / 4),
             kept = 0;
    uint32_t starter = UINT32_MAX;
    int between = -1; /* class of what stands between */
    for (uint32_t i = 0; i < count; i++) {
        uint32_t code = points[i] & CODE_MASK, made = 0;
        int class = (int)(points[i] >> CLASS_SHIFT);
        WORK();
        if (starter != UINT32_MAX && between < class) made = composed(work->t, points[starter], code);
        if (made) {
            points[starter] = made;
            continue;
        }
        if (!class) starter = kept;
        between = class ? class : -1;
        points[kept++] = points[i];
    }
    work->points.used = (size_t)kept * 4;
}

mqc_status mqct_normalize_text(Work *work, int compose) {
    const mqc_allocator *a = &work->t->allocator;
    size_t plain = 0;
    while (plain < work->text.used && work->text.data[plain] < 0x80) plain++;
    if (plain == work->text.used) return MQC_OK;
    work->points.used = work->sorted.used = 0;
    if (!decompose(work) || !order_marks(work)) return MQC_ERROR_MEMORY;
    if (compose) compose_points(work);
    const uint32_t *points = (const uint32_t *)(const void *)work->points.data;
    size_t count = work->points.used / 4;
    work->text.used = 0;
    if (!mqct_buffer_grow(a, &work->text, count * 4)) return MQC_ERROR_MEMORY;
    for (size_t i = 0; i < count; i++)
        work->text.used += mqct_write_code_point(points[i] & CODE_MASK, work->text.data + work->text.used);
    return MQC_OK;
}
