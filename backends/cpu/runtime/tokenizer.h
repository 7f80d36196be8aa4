/* Tables of a tokenizer as they lie in its file, and what its parts give one another. Names in `mqct_` are not
 * for apps. */
#ifndef MQC_TOKENIZER_PARTS_H
#define MQC_TOKENIZER_PARTS_H

#include <stdlib.h>
#include <string.h>

#include "mqc_tokenizer.h"

/* Bytes of a text, and of what is made of it on the way to ids. */
enum { MAX_TEXT = 1 << 28, MAX_WORK = 1 << 30, NONE = -1 };

/* Work that grows with a text is counted where a test asks for it. */
#ifdef MQC_COUNT_WORK
extern unsigned long long mqc_work;
#define WORK() (mqc_work++)
#else
#define WORK() ((void)0)
#endif

/* ---- tables; tokenizer_open.c checks each number in them */

/* Strings one behind another: string i is data[offsets[i]] … data[offsets[i + 1] - 1]. */
typedef struct {
    uint32_t count;
    const uint32_t *offsets;
    const uint8_t *data;
} Strings;

typedef struct {
    const uint8_t *data;
    uint32_t bytes;
} Text;

static inline Text string(const Strings *strings, uint32_t i) {
    Text text = {strings->data + strings->offsets[i], strings->offsets[i + 1] - strings->offsets[i]};
    return text;
}

/* Sorted by text. flags: those below; of control tokens the rank by length, longest first. */
typedef struct {
    Strings texts;
    const int32_t *ids;
    const uint32_t *flags;
} Added;

enum { ADDED_SPECIAL = 1, ADDED_LEFT = 2, ADDED_RIGHT = 4 };

/* Its number is its rank. */
typedef struct {
    int32_t left, right, made;
} Merge;

enum {
    STEP_REPLACE,   /* string x by string y */
    STEP_PREPEND,   /* string x, if y says so */
    STEP_SPLIT,     /* by the pattern that begins at instruction x; y: what becomes of matches; z: inverted */
    STEP_NORMALIZE, /* x: whether characters are composed again */
    STEPS
};
enum { PREPEND_ALWAYS, PREPEND_MISSING, PREPEND_MISSING_FIRST };
enum { SPLIT_ISOLATED, SPLIT_REMOVED, SPLIT_PREVIOUS, SPLIT_NEXT, SPLIT_CONTIGUOUS };

typedef struct {
    uint32_t op, x, y, z;
} Step;

enum {
    OP_MATCH,
    OP_CLASS,    /* one character of class x */
    OP_SPLIT,    /* go on at x, and if that fails at y */
    OP_JUMP,     /* to x */
    OP_SKIP,     /* characters of class x, as many as there are */
    OP_SKIP_ONE, /* a character of class x if there is one */
    OP_AHEAD,    /* the next character is of class x; if y, there is none of class x */
    OP_LINE_END, /* at the end, or in front of a newline: the next character is of class x or missing */
    OPS
};

typedef struct {
    uint32_t op, x, y;
    uint32_t memo; /* number of an OP_SPLIT or OP_SKIP: where it failed once, it is not tried again */
} Instruction;

/* Sorted by code point: canonical classes, and what characters decompose to. */
typedef struct {
    uint32_t code, value, count; /* value: class, or first of `count` code points */
} CodeEntry;

typedef struct {
    uint32_t first, second, made;
} Composition;

/* What the ids of a text mean for decoding. */
enum { KIND_TEXT, KIND_LEFT_OUT, KIND_BYTE };

typedef struct {
    uint32_t vocabulary;
    uint32_t byte_level;     /* symbols are bytes; else characters */
    uint32_t whole_pieces;   /* a piece that is a token is this token, whatever merges say */
    uint32_t fuse_unknown;
    int32_t unknown;         /* id, or NONE: what is unknown is left out */
    int32_t behind;          /* id that a decoder has seen before the first one, or NONE */
    uint32_t byte_text;      /* decoding joins bytes; else whole texts */
    uint32_t strip;          /* spaces that decoding takes from the front of a text */
    uint32_t normalizer;     /* steps that stand before the rest */
    uint32_t space_class;    /* what added tokens take from the text around them */
    uint32_t trim_class;     /* what chat templates take from contents */
    uint32_t memos;          /* of all patterns */
    uint32_t compiled;       /* whether there is a chat template */
} Settings;

enum { ROLES = 3, FROM_START = 3, TO_END = 3, TO_ANSWER = 4, FROMS = 4, TOS = 5 };

struct mqc_tokenizer {
    mqc_allocator allocator;
    Settings settings;
    Strings texts;           /* what ids decode to */
    const uint8_t *kinds;    /* [vocabulary] */
    const int32_t *byte_ids; /* [256]: ids of bytes, or NONE */
    Strings keys;            /* symbols, and if `whole_pieces` all tokens */
    const int32_t *key_ids;
    const uint32_t *key_slots; /* hash table of numbers of keys; empty slots hold UINT32_MAX */
    uint32_t key_mask;
    const Merge *merges;
    uint32_t merge_count;
    const uint32_t *merge_slots; /* hash table of numbers of merges */
    uint32_t merge_mask;
    Added raw, normalized, control; /* found before normalizing, after it, and in chat templates */
    const Step *steps;
    uint32_t step_count;
    Strings literals;
    const Instruction *code;
    uint32_t code_count;
    const uint16_t *pages;     /* [0x1100] */
    const uint8_t *kinds_of;   /* [pages][256]: kind of a character */
    const uint8_t (*classes)[32]; /* bit set of kinds */
    uint32_t class_count;
    const CodeEntry *orders, *decompositions;
    uint32_t order_count, decomposition_count;
    const uint32_t *decomposed;
    uint32_t decomposed_count;
    const Composition *compositions; /* sorted by first, second */
    uint32_t composition_count;
    const int32_t *start, *in_front, *ends;
    uint32_t start_count, in_front_count, end_count;
    const int32_t *joints; /* [FROMS][TOS]: literals between messages, or NONE */
    const uint32_t *trims; /* [ROLES]: 1: at the left, 2: at the right */
    Strings watched;       /* texts in contents that the template treats in its own way */
    const char *reason;
};

/* ---- memory */

/* Grows as needed; released by its owner. */
typedef struct {
    uint8_t *data;
    size_t used, room;
} Buffer;

/* Makes room for further bytes. 0: there is no memory, and the buffer is as it was. */
int mqct_buffer_grow(const mqc_allocator *allocator, Buffer *buffer, size_t bytes);
int mqct_buffer_add(const mqc_allocator *allocator, Buffer *buffer, const void *data, size_t bytes);
void mqct_buffer_release(const mqc_allocator *allocator, Buffer *buffer);

/* A piece of a text that is being split. */
typedef struct {
    uint32_t begin, end;
} Piece;

/* What one call of encode needs. */
typedef struct {
    const mqc_tokenizer *t;
    int parse_special;
    Buffer section;            /* text between two added tokens, normalized */
    Buffer text, other;        /* text while it is normalized or split, and what a step makes of it */
    Buffer pieces, more;       /* Piece */
    Buffer kinds, offsets;     /* of the characters of a piece: uint8_t, and uint32_t, with the end */
    Buffer memo, stack;        /* of the matcher */
    Buffer matches;            /* Match */
    Buffer symbols, heap;      /* of merging */
    Buffer points, sorted;     /* uint32_t: code points while they are normalized */
    Buffer ids;                /* int32_t: the result */
} Work;

void mqct_work_release(Work *work);

/* ---- characters */

/* Code point at *at, which lies in front of `end` in valid UTF-8; *at moves behind it. */
static inline uint32_t next_code_point(const uint8_t *text, uint32_t *at) {
    uint32_t lead = text[(*at)++];
    if (lead < 0x80) return lead;
    int further = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
    uint32_t code = lead & (0x3Fu >> further);
    while (further--) code = code << 6 | (text[(*at)++] & 0x3Fu);
    return code;
}

/* Bytes of the valid character in front of which `text` stands, 0 if there is none; *good: how many bytes
 * could begin one, at least 1. */
size_t mqct_valid_character(const uint8_t *text, size_t bytes, size_t *good);
int mqct_valid_utf8(const uint8_t *text, size_t bytes);
/* Writes at most 4 bytes. */
size_t mqct_write_code_point(uint32_t code, uint8_t *text);

static inline uint8_t kind_of(const mqc_tokenizer *t, uint32_t code) {
    return t->kinds_of[(uint32_t)t->pages[code >> 8] << 8 | (code & 255)];
}

static inline int in_class(const mqc_tokenizer *t, uint32_t class, uint8_t kind) {
    return t->classes[class][kind >> 3] >> (kind & 7) & 1;
}

/* ---- parts */

/* Hash of tables of keys and of pairs, as export computes it. */
static inline uint32_t hash_bytes(const uint8_t *data, uint32_t bytes) {
    uint32_t hash = 2166136261u;
    for (uint32_t i = 0; i < bytes; i++) hash = (hash ^ data[i]) * 16777619u;
    return hash ^ hash >> 15;
}

static inline uint32_t hash_pair(int32_t left, int32_t right) {
    uint64_t hash = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    return (uint32_t)(hash >> 32);
}

/* Longest text at the front of `text`: its number, or NONE. */
int32_t mqct_longest_added(const Added *added, const uint8_t *text, size_t bytes);

/* Ids of a valid text are appended to work->ids. */
mqc_status mqct_encode_text(Work *work, const uint8_t *text, size_t bytes);

/* Splits each of work->pieces. */
mqc_status mqct_split_pieces(Work *work, const Step *step);
/* Normalizes work->text, whatever pieces there are. */
mqc_status mqct_normalize_text(Work *work, int compose);

/* Ids of a piece are appended to work->ids. */
mqc_status mqct_merge_piece(Work *work, const uint8_t *text, uint32_t bytes);

/* Copies ids to the caller. */
mqc_status mqct_give_ids(const int32_t *from, size_t found, int32_t *ids, size_t capacity, size_t *count);

#endif
