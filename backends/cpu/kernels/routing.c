/* The choice of experts and their weights, one token after the other; products of blocks with their gates. */
#include "kernels.h"
#include "softmax.h"

/* Marks the `count` largest of n allowed values, of equal ones the first. */
static void mark_largest(const s64 *values, const u8 *allowed, int n, int count, u8 *marked) {
    for (int i = 0; i < n; i++) marked[i] = 0;
    for (int found = 0; found < count; found++) {
        int best = -1;
        for (int i = 0; i < n; i++)
            if ((!allowed || allowed[i]) && !marked[i] && (best < 0 || values[i] > values[best])) best = i;
        marked[best] = 1;
    }
}

/* The sum of the `count` largest of n values. */
static s64 sum_of_largest(const s64 *values, int n, int count) {
    u8 marked[n];
    mark_largest(values, 0, n, count, marked);
    s64 sum = 0;
    for (int i = 0; i < n; i++) sum += marked[i] ? values[i] : 0;
    return sum;
}

/* Allows the experts of the best groups. */
static void allow_groups(const Route *p, const s64 *choice, u8 *allowed) {
    int size = p->experts / p->groups;
    s64 sums[p->groups];
    u8 kept[p->groups];
    for (int g = 0; g < p->groups; g++) sums[g] = sum_of_largest(choice + g * size, size, p->group_scores);
    mark_largest(sums, 0, p->groups, p->top_groups, kept);
    for (int i = 0; i < p->experts; i++) allowed[i] = kept[i / size];
}

/* Probabilities of the marked ones of n scores, all if `marked` is NULL; 0 of the others. */
static void shares_of(const Route *p, const s32 *exp2, const s32 *d, const u8 *marked, s32 *shares) {
    SoftmaxScale scale = {p->score_multiplier, p->score_left, p->score_right};
    s32 seen[p->experts];
    int count = 0;
    for (int i = 0; i < p->experts; i++)
        if (!marked || marked[i]) seen[count++] = d[i];
    SoftmaxTotal total = exponentials(scale, exp2, seen, count, 0);
    for (int i = 0, k = 0; i < p->experts; i++) shares[i] = !marked || marked[i] ? probability(total, seen[k++]) : 0;
}

static void route_token(const Route *p, const s32 *exp2, const s32 *d, s32 *weight) {
    int n = p->experts;
    s32 shares[n];
    s64 choice[n];
    u8 allowed[n], marked[n];
    if (p->shares) shares_of(p, exp2, d, 0, shares);
    const s32 *score = p->shares ? shares : d;
    for (int i = 0; i < n; i++) choice[i] = (s64)score[i] + (p->bias ? p->bias[i] : 0);
    int limited = p->top_groups < p->groups;
    if (limited) allow_groups(p, choice, allowed);
    mark_largest(choice, limited ? allowed : 0, n, p->top_k, marked);
    if (p->normalization == 2) {
        shares_of(p, exp2, d, marked, weight);
        return;
    }
    s64 sum = 0;
    for (int i = 0; i < n; i++) sum += marked[i] && score[i] > 0 ? score[i] : 0;
    for (int i = 0; i < n; i++) {
        if (!marked[i])
            weight[i] = 0;
        else if (p->normalization == 1)
            weight[i] = score[i] > 0 ? (s32)(((s64)score[i] << 30) / sum) : 0;
        else
            weight[i] = score[i];
    }
}

INLINE void route_kind(const Run *r, const Route *p, const s32 *exp2, const void *x, const int xbits, void *y,
                       const int bits) {
    int begin, end, n = p->experts;
    share(r, r->tokens, 1, &begin, &end);
    s32 d[n], weight[n];
    for (int t = begin; t < end; t++) {
        size_t base = (size_t)t * (size_t)n;
        for (int i = 0; i < n; i++) d[i] = load(x, xbits, base + (size_t)i) - p->x_zero;
        route_token(p, exp2, d, weight);
        requant_row(&p->requant, weight, 0, n, (u8 *)y + base * (size_t)(bits / 8), bits);
    }
    barrier(r);
}

#define ROUTE(xbits, bits)                                                                        \
    void route_u##xbits##_u##bits(Run *r, const Route *p, const s32 *exp2, const void *x, void *y) { \
        route_kind(r, p, exp2, x, xbits, y, bits);                                                \
    }
ROUTE(8, 8) ROUTE(8, 16) ROUTE(16, 8) ROUTE(16, 16)

INLINE void gate_kind(const Run *r, const Gate *p, int channels, const void *x, const int xbits, const void *gates,
                      const int gbits, void *y, const int bits) {
    int t0, t1, c0, c1, size = channels / p->blocks;
    share_elements(r, channels, &t0, &t1, &c0, &c1);
    for (int t = t0; t < t1; t++)
        for (int c = c0, n; c < c1; c += n) {
            s32 acc[64];
            int left = (c / size + 1) * size - c; /* in the block */
            n = c1 - c < 64 ? c1 - c : 64;
            n = left < n ? left : n;
            size_t base = (size_t)t * (size_t)channels + (size_t)c;
            s32 gate = load(gates, gbits, (size_t)t * (size_t)p->blocks + (size_t)(c / size)) - p->gates_zero;
            for (int i = 0; i < n; i++) {
                s32 d = load(x, xbits, base + (size_t)i) - p->x_zero;
                acc[i] = (s32)shift_right_round((s64)d * gate, p->acc_shift);
            }
            requant_row(&p->requant, acc, c, n, (u8 *)y + base * (size_t)(bits / 8), bits);
        }
    barrier(r);
}

#define GATE(xbits, gbits, bits)                                                                            \
    void gate_u##xbits##_u##gbits##_u##bits(Run *r, const Gate *p, int channels, const void *x,             \
                                            const void *gates, void *y) {                                   \
        gate_kind(r, p, channels, x, xbits, gates, gbits, y, bits);                                         \
    }
GATE(8, 8, 8) GATE(8, 8, 16) GATE(8, 16, 8) GATE(8, 16, 16)
GATE(16, 8, 8) GATE(16, 8, 16) GATE(16, 16, 8) GATE(16, 16, 16)
