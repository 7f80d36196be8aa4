/* Splits pieces of a text by a pattern, as Oniguruma would: the leftmost match, and of several the one that
 * greedy quantifiers and the order of alternatives say.
 *
 * Patterns are compiled at export. Whether an instruction leads to a match from some place depends on these
 * two alone. So where an alternative failed once it is not tried again, from whatever place the search began:
 * work is at most instructions times characters. */
#include "tokenizer.h"

enum { SET_BITS = 64 };

typedef struct {
    uint32_t code, at;
} Branch;

/* A part of a piece: a match, or what lies between two. */
typedef struct {
    uint32_t begin, end, is_match;
} Match;

typedef struct {
    Work *work;
    const uint8_t *kinds; /* of the characters */
    uint32_t count;       /* characters */
    uint64_t *failed;     /* [count + 1][sets]: bit set of memos */
    uint32_t sets;
} Search;

/* Whether a memo is new at a place; from now on it is not. */
static int is_new(const Search *s, uint32_t at, uint32_t memo) {
    uint64_t *set = s->failed + (size_t)at * s->sets + memo / SET_BITS, bit = (uint64_t)1 << memo % SET_BITS;
    int new = !(*set & bit);
    *set |= bit;
    return new;
}

/* End of the match that begins at a place; the place itself if there is none. */
static mqc_status match_at(const Search *s, uint32_t start, uint32_t from, uint32_t *end) {
    const mqc_tokenizer *t = s->work->t;
    Buffer *stack = &s->work->stack;
    uint32_t pc = start, at = from;
    stack->used = 0;
    for (;;) {
        const Instruction *in = t->code + pc;
        int here = at < s->count && in->op != OP_SPLIT && in->op != OP_JUMP && in->op != OP_MATCH &&
                   in_class(t, in->x, s->kinds[at]);
        int fails = 0;
        WORK();
        switch (in->op) {
            case OP_CLASS:
                fails = !here;
                at++;
                pc++;
                break;
            case OP_SPLIT: {
                Branch other = {in->y, at};
                fails = !is_new(s, at, in->memo);
                if (!fails && !mqct_buffer_add(&t->allocator, stack, &other, sizeof other))
                    return MQC_ERROR_MEMORY;
                pc = in->x;
                break;
            }
            case OP_JUMP: pc = in->x; break;
            case OP_SKIP:
                fails = !is_new(s, at, in->memo);
                at += (uint32_t)here;
                pc += !here;
                break;
            case OP_SKIP_ONE:
                at += (uint32_t)here;
                pc++;
                break;
            case OP_AHEAD:
                fails = here == (in->y != 0);
                pc++;
                break;
            case OP_LINE_END:
                fails = !here && at < s->count;
                pc++;
                break;
            default: /* OP_MATCH: what led here did not fail, and is forgotten where the search goes on */
                memset(s->failed + (size_t)at * s->sets, 0, s->sets * sizeof *s->failed);
                *end = at;
                return MQC_OK;
        }
        if (!fails) continue;
        if (!stack->used) break;
        Branch branch;
        stack->used -= sizeof branch;
        memcpy(&branch, stack->data + stack->used, sizeof branch);
        pc = branch.code;
        at = branch.at;
    }
    *end = from;
    return MQC_OK;
}

static mqc_status read_characters(Work *work, Piece piece, Search *search) {
    const mqc_tokenizer *t = work->t;
    uint32_t bytes = piece.end - piece.begin, at = piece.begin;
    const uint8_t *text = work->text.data;
    work->kinds.used = work->offsets.used = work->memo.used = 0;
    if (!mqct_buffer_grow(&t->allocator, &work->kinds, bytes)) return MQC_ERROR_MEMORY;
    if (!mqct_buffer_grow(&t->allocator, &work->offsets, ((size_t)bytes + 1) * 4)) return MQC_ERROR_MEMORY;
    uint32_t *offsets = (uint32_t *)(void *)work->offsets.data, count = 0;
    for (; at < piece.end; count++) {
        offsets[count] = at;
        work->kinds.data[count] = kind_of(t, next_code_point(text, &at));
    }
    offsets[count] = at;
    uint32_t sets = t->settings.memos / SET_BITS + 1;
    size_t memory = ((size_t)count + 1) * sets * sizeof(uint64_t);
    if (!mqct_buffer_grow(&t->allocator, &work->memo, memory)) return MQC_ERROR_MEMORY;
    memset(work->memo.data, 0, memory);
    *search = (Search){work, work->kinds.data, count, (uint64_t *)(void *)work->memo.data, sets};
    return MQC_OK;
}

static int add_match(Work *work, uint32_t begin, uint32_t end, uint32_t is_match) {
    const uint32_t *offsets = (const uint32_t *)(const void *)work->offsets.data;
    Match match = {offsets[begin], offsets[end], is_match};
    return begin == end || mqct_buffer_add(&work->t->allocator, &work->matches, &match, sizeof match);
}

/* Matches in a piece and what lies between them, in order. */
static mqc_status find_matches(Work *work, const Step *step, Piece piece) {
    Search search;
    mqc_status status = read_characters(work, piece, &search);
    if (status) return status;
    uint32_t done = 0, match = step->z ? 0 : 1, end;
    work->matches.used = 0;
    for (uint32_t at = 0; at < search.count;) {
        if ((status = match_at(&search, step->x, at, &end))) return status;
        if (end == at) {
            at++;
            continue;
        }
        if (!add_match(work, done, at, !match) || !add_match(work, at, end, match)) return MQC_ERROR_MEMORY;
        done = at = end;
    }
    return add_match(work, done, search.count, !match) ? MQC_OK : MQC_ERROR_MEMORY;
}

/* Pieces of matches and of what lies between: each by itself, or joined as the behaviour says. */
static mqc_status join_matches(Work *work, uint32_t behaviour) {
    const Match *matches = (const Match *)(const void *)work->matches.data;
    size_t count = work->matches.used / sizeof *matches, first = work->more.used / sizeof(Piece);
    for (size_t i = 0; i < count; i++) {
        Piece piece = {matches[i].begin, matches[i].end};
        int before = i && matches[i - 1].is_match, here = (int)matches[i].is_match, joins = 0;
        if (behaviour == SPLIT_REMOVED && here) continue;
        if (behaviour == SPLIT_PREVIOUS) joins = here && !before;
        if (behaviour == SPLIT_CONTIGUOUS) joins = here == before;
        /* From behind: a match joins what follows, if that is no match. */
        if (behaviour == SPLIT_NEXT) joins = before && !here;
        Piece *pieces = (Piece *)(void *)work->more.data;
        size_t made = work->more.used / sizeof piece;
        if (joins && made > first)
            pieces[made - 1].end = piece.end;
        else if (!mqct_buffer_add(&work->t->allocator, &work->more, &piece, sizeof piece))
            return MQC_ERROR_MEMORY;
    }
    return MQC_OK;
}

mqc_status mqct_split_pieces(Work *work, const Step *step) {
    work->more.used = 0;
    for (size_t i = 0; i < work->pieces.used / sizeof(Piece); i++) {
        Piece piece;
        memcpy(&piece, work->pieces.data + i * sizeof piece, sizeof piece);
        mqc_status status = find_matches(work, step, piece);
        if (!status) status = join_matches(work, step->y);
        if (status) return status;
    }
    Buffer made = work->more;
    work->more = work->pieces;
    work->pieces = made;
    return MQC_OK;
}
