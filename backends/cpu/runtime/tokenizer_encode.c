/* Ids of texts: added tokens are found, what lies between is normalized, split, and merged piece by piece. */
#include "tokenizer.h"

void mqct_work_release(Work *work) {
    Buffer *buffers[] = {&work->section, &work->text,    &work->other,  &work->pieces, &work->more,
                         &work->kinds,   &work->offsets, &work->memo,   &work->stack,  &work->matches,
                         &work->symbols, &work->heap,    &work->points, &work->sorted, &work->ids};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        mqct_buffer_release(&work->t->allocator, buffers[i]);
}

/* ---- steps */

static int begins_with(Text text, const uint8_t *data, uint32_t bytes) {
    return text.bytes <= bytes && !memcmp(text.data, data, text.bytes);
}

/* Appends a piece to work->other as a step changes it. */
static int rewrite_piece(Work *work, const Step *step, const uint8_t *data, uint32_t bytes, int first) {
    const mqc_allocator *a = &work->t->allocator;
    Text found = string(&work->t->literals, step->x);
    if (step->op == STEP_PREPEND) {
        int missing = step->y == PREPEND_ALWAYS || !begins_with(found, data, bytes);
        if (step->y == PREPEND_MISSING_FIRST && !first) missing = 0;
        if (missing && !mqct_buffer_add(a, &work->other, found.data, found.bytes)) return 0;
        return mqct_buffer_add(a, &work->other, data, bytes);
    }
    Text put = string(&work->t->literals, step->y);
    for (uint32_t at = 0; at < bytes;) {
        WORK();
        int replaces = begins_with(found, data + at, bytes - at);
        if (replaces ? !mqct_buffer_add(a, &work->other, put.data, put.bytes)
                     : !mqct_buffer_add(a, &work->other, data + at, 1))
            return 0;
        if (work->other.used > MAX_WORK) return 0;
        at += replaces ? found.bytes : 1;
    }
    return 1;
}

static mqc_status rewrite_pieces(Work *work, const Step *step, int first) {
    Piece *pieces = (Piece *)(void *)work->pieces.data;
    size_t count = work->pieces.used / sizeof *pieces, kept = 0;
    work->other.used = 0;
    for (size_t i = 0; i < count; i++) {
        Piece piece = pieces[i];
        uint32_t begin = (uint32_t)work->other.used;
        const uint8_t *data = work->text.data + piece.begin;
        if (!rewrite_piece(work, step, data, piece.end - piece.begin, first && !i)) return MQC_ERROR_MEMORY;
        if (work->other.used > MAX_WORK) return MQC_ERROR_MEMORY;
        if (work->other.used > begin) pieces[kept++] = (Piece){begin, (uint32_t)work->other.used};
    }
    work->pieces.used = kept * sizeof *pieces;
    Buffer made = work->other;
    work->other = work->text;
    work->text = made;
    return MQC_OK;
}

/* The whole of work->text is one piece. */
static mqc_status take_whole(Work *work) {
    Piece whole = {0, (uint32_t)work->text.used};
    work->pieces.used = 0;
    if (!whole.end) return MQC_OK;
    return mqct_buffer_add(&work->t->allocator, &work->pieces, &whole, sizeof whole) ? MQC_OK
                                                                                     : MQC_ERROR_MEMORY;
}

/* first: the text begins where what the caller encodes begins. */
static mqc_status run_steps(Work *work, const uint8_t *text, size_t bytes, uint32_t from, uint32_t to,
                            int first) {
    work->text.used = 0;
    if (!mqct_buffer_add(&work->t->allocator, &work->text, text, bytes)) return MQC_ERROR_MEMORY;
    mqc_status status = take_whole(work);
    for (uint32_t i = from; i < to && !status; i++) {
        const Step *step = work->t->steps + i;
        if (step->op == STEP_SPLIT) {
            status = mqct_split_pieces(work, step);
        } else if (step->op == STEP_NORMALIZE) {
            status = mqct_normalize_text(work, (int)step->x);
            if (!status) status = take_whole(work);
        } else {
            status = rewrite_pieces(work, step, first);
        }
    }
    return status;
}

/* ---- added tokens */

/* Of texts low … high - 1, which are alike up to `depth`: the first with at least `byte` there. */
static uint32_t bound(const Added *added, uint32_t low, uint32_t high, uint32_t depth, uint32_t byte) {
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        Text one = string(&added->texts, middle);
        WORK();
        if (one.bytes <= depth || one.data[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

int32_t mqct_longest_added(const Added *added, const uint8_t *text, size_t bytes) {
    uint32_t low = 0, high = added->texts.count;
    int32_t longest = NONE;
    for (uint32_t depth = 0; depth < bytes && low < high; depth++) {
        low = bound(added, low, high, depth, text[depth]);
        high = bound(added, low, high, depth, text[depth] + 1u);
        if (low < high && string(&added->texts, low).bytes == depth + 1) longest = (int32_t)low;
    }
    return longest;
}

/* Added tokens in a text, one after another. */
typedef struct {
    const Added *added;
    const uint8_t *text;
    uint32_t bytes;
    uint32_t searched, done; /* where the search goes on, and up to where the text is split */
    uint32_t begin;          /* of the token that was found; it ends at `done` */
    int32_t id;
} Finder;

static int is_space(const mqc_tokenizer *t, const uint8_t *text, uint32_t at) {
    return in_class(t, t->settings.space_class, kind_of(t, next_code_point(text, &at)));
}

static int find_next(const Work *work, Finder *finder) {
    const mqc_tokenizer *t = work->t;
    const uint8_t *text = finder->text;
    while (finder->added->texts.count && finder->searched < finder->bytes) {
        uint32_t begin = finder->searched;
        int32_t found = mqct_longest_added(finder->added, text + begin, finder->bytes - begin);
        if (found == NONE) {
            finder->searched++;
            continue;
        }
        uint32_t flags = finder->added->flags[found],
                 end = begin + string(&finder->added->texts, (uint32_t)found).bytes;
        finder->searched = end;
        if (flags & ADDED_SPECIAL && !work->parse_special) continue;
        while (flags & ADDED_LEFT && begin > finder->done) {
            uint32_t before = begin - 1;
            while ((text[before] & 0xC0) == 0x80) before--;
            if (before < finder->done || !is_space(t, text, before)) break;
            begin = before;
        }
        if (flags & ADDED_RIGHT) {
            /* What an earlier token took already are spaces. */
            if (end < finder->done) end = finder->done;
            while (end < finder->bytes && is_space(t, text, end)) next_code_point(text, &end);
        }
        finder->begin = begin;
        finder->done = end;
        finder->id = finder->added->ids[found];
        return 1;
    }
    return 0;
}

/* ---- a text */

static mqc_status encode_pieces(Work *work) {
    for (size_t i = 0; i < work->pieces.used / sizeof(Piece); i++) {
        Piece piece;
        memcpy(&piece, work->pieces.data + i * sizeof piece, sizeof piece);
        mqc_status status = mqct_merge_piece(work, work->text.data + piece.begin, piece.end - piece.begin);
        if (status) return status;
    }
    return MQC_OK;
}

/* What is done with the text between two added tokens. */
typedef mqc_status Between(Work *work, const uint8_t *text, uint32_t bytes, int first);

static mqc_status split_by_added(Work *work, const Added *added, const uint8_t *text, uint32_t bytes,
                                 int first, Between *between) {
    Finder finder = {added, text, bytes, 0, 0, 0, 0};
    for (;;) {
        uint32_t done = finder.done;
        int found = find_next(work, &finder);
        uint32_t end = found ? finder.begin : bytes;
        if (end > done) {
            mqc_status status = between(work, text + done, end - done, first && !done);
            if (status) return status;
        }
        if (!found) return MQC_OK;
        if (!mqct_buffer_add(&work->t->allocator, &work->ids, &finder.id, sizeof finder.id))
            return MQC_ERROR_MEMORY;
    }
}

static mqc_status encode_normalized(Work *work, const uint8_t *text, uint32_t bytes, int first) {
    mqc_status status =
        run_steps(work, text, bytes, work->t->settings.normalizer, work->t->step_count, first);
    return status ? status : encode_pieces(work);
}

static mqc_status encode_section(Work *work, const uint8_t *text, uint32_t bytes, int first) {
    const mqc_tokenizer *t = work->t;
    if (!t->settings.normalizer)
        return split_by_added(work, &t->normalized, text, bytes, first, encode_normalized);
    mqc_status status = run_steps(work, text, bytes, 0, t->settings.normalizer, first);
    if (status) return status;
    Buffer made = work->text;
    work->text = work->section;
    work->section = made;
    return split_by_added(work, &t->normalized, made.data, (uint32_t)made.used, first, encode_normalized);
}

mqc_status mqct_encode_text(Work *work, const uint8_t *text, size_t bytes) {
    if (bytes > MAX_TEXT) return MQC_ERROR_ARGUMENT;
    return split_by_added(work, &work->t->raw, text, (uint32_t)bytes, 1, encode_section);
}

mqc_status mqct_give_ids(const int32_t *from, size_t found, int32_t *ids, size_t capacity, size_t *count) {
    size_t copied = found < capacity ? found : capacity;
    if (copied) memcpy(ids, from, copied * sizeof *ids);
    *count = found;
    return found > capacity ? MQC_ERROR_FULL : MQC_OK;
}

mqc_status mqc_tokenizer_encode(const mqc_tokenizer *tokenizer, const char *text, size_t bytes,
                                unsigned flags, int32_t *ids, size_t capacity, size_t *count) {
    if (!tokenizer || !count || (!text && bytes) || (!ids && capacity)) return MQC_ERROR_ARGUMENT;
    *count = 0;
    if (flags & ~(unsigned)(MQC_PARSE_SPECIAL | MQC_ADD_START)) return MQC_ERROR_ARGUMENT;
    if (bytes > MAX_TEXT || !mqct_valid_utf8((const uint8_t *)text, bytes)) return MQC_ERROR_ARGUMENT;
    Work work;
    memset(&work, 0, sizeof work);
    work.t = tokenizer;
    work.parse_special = (flags & MQC_PARSE_SPECIAL) != 0;
    size_t start = flags & MQC_ADD_START ? tokenizer->start_count * sizeof *ids : 0;
    mqc_status status = mqct_buffer_add(&tokenizer->allocator, &work.ids, tokenizer->start, start)
                            ? MQC_OK
                            : MQC_ERROR_MEMORY;
    if (!status) status = mqct_encode_text(&work, (const uint8_t *)text, bytes);
    if (!status)
        status = mqct_give_ids((const int32_t *)(const void *)work.ids.data, work.ids.used / 4, ids, capacity,
                               count);
    mqct_work_release(&work);
    return status;
}
