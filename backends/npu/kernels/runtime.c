/* Runs op lists: `runtime OPLIST WEIGHTS`, requests on standard input, answers on standard output.
 *
 * A request is s32 list, position, first_row, rows, flags (1: count packets), trace_count; the ids of the
 * list's tokens; and the traces {command, address, bytes}, sorted by command. The answer: the traced bytes
 * of VTCM after their commands, `rows` rows of logits, u32 packets of each command if asked, and the u32
 * number of commands executed.
 */
#include "system.h"
#include "vectors.h"

#define OP_LIST_MAGIC 0x4c50514d /* "MQPL" */
#define OP_LIST_VERSION 2
#define WEIGHTS_LIMIT ((u64)3 << 29)
#define TRANSFERS 16
#define MOST_LISTS 64
#define MOST_COMMANDS (1 << 20)
#define MOST_TRACES (1 << 16)

enum { MAP_PRIVATE = 2, MAP_FIXED = 16, MAP_ANONYMOUS = 32, PROT_READ = 1, PROT_READ_WRITE = 3 };

typedef struct {
    u32 magic, version, vtcm_bytes, cache_bytes, vocabulary, lists;
} Header;

typedef struct {
    s32 tokens, count; /* count: words */
    const u32 *words;
} List;

typedef struct {
    s32 list, position, first_row, rows, flags, trace_count;
} Request;

typedef struct {
    s32 command, address, bytes;
} Trace;

/* A DMA under way: copied when it is waited for, as late as hardware may. */
typedef struct {
    const u8 *from;
    u8 *to;
    s32 rows, bytes, step;
    int busy;
} Transfer;

static Machine machine;
static Transfer transfers[TRANSFERS];
static List lists[MOST_LISTS];
static Trace traces[MOST_TRACES];
static u32 packet_counts[MOST_COMMANDS];
static s32 *ids;

static void put(const char *text) {
    s32 n = 0;
    while (text[n]) n++;
    system_call(SYS_WRITE, 2, (s32)text, n, 0, 0, 0);
}

static void __attribute__((noreturn)) leave(s32 status) {
    system_call(SYS_EXIT_GROUP, status, 0, 0, 0, 0, 0);
    __builtin_unreachable();
}

static void __attribute__((noreturn)) fail(const char *what, u32 number) {
    char digits[11];
    int i = 10;
    digits[i] = 0;
    do digits[--i] = (char)('0' + number % 10);
    while (number /= 10);
    put(what);
    put(" ");
    put(digits + i);
    put("\n");
    leave(1);
}

static u8 *memory(u64 bytes) {
    s32 at = bytes > INT32_MAX - MARGIN_BYTES
                 ? -1
                 : system_call(SYS_MMAP, 0, (s32)bytes + MARGIN_BYTES, PROT_READ_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (failed(at)) fail("out of memory, bytes:", (u32)bytes);
    return (u8 *)at;
}

/* The whole file; zeros follow, because kernels read whole vectors. */
static const u8 *map_file(const char *path, u64 limit, u32 *bytes) {
    s32 file = system_call(SYS_OPENAT, -100, (s32)path, 0, 0, 0, 0);
    u64 size = 0;
    if (file < 0 || system_call(SYS_LLSEEK, file, 0, 0, (s32)&size, 2, 0) < 0) {
        put(path);
        fail(": cannot be read, error", (u32)-file);
    }
    if (size > limit) {
        put(path);
        fail(": too large for 32-bit addresses; the most bytes are", (u32)limit);
    }
    *bytes = (u32)size;
    u8 *at = memory(size);
    if (size && failed(system_call(SYS_MMAP, (s32)at, (s32)size, PROT_READ, MAP_PRIVATE | MAP_FIXED, file, 0)))
        fail("cannot map a file, bytes:", (u32)size);
    return at;
}

/* 0 at the end of input. */
static int receive(void *to, s32 bytes) {
    s32 got = 0;
    while (got < bytes) {
        s32 n = system_call(SYS_READ, 0, (s32)to + got, bytes - got, 0, 0, 0);
        if (n <= 0) {
            if (n < 0 || got) fail("a request ends after bytes:", (u32)got);
            return 0;
        }
        got += n;
    }
    return 1;
}

static void send(const void *from, u32 bytes) {
    u32 sent = 0;
    while (sent < bytes) {
        s32 n = system_call(SYS_WRITE, 1, (s32)from + (s32)sent, (s32)(bytes - sent), 0, 0, 0);
        if (n <= 0) fail("nobody reads the answer, error", (u32)-n);
        sent += (u32)n;
    }
}

static Transfer *transfer(s32 number) {
    if (number < 0 || number >= TRANSFERS) fail("no such transfer:", (u32)number);
    return &transfers[number];
}

static void start_transfer(s32 number, const u8 *from, u8 *to, s32 rows, s32 bytes, s32 step) {
    Transfer *x = transfer(number), started = {from, to, rows, bytes, step, 1};
    if (x->busy) fail("a transfer is still under way:", (u32)number);
    *x = started;
}

static void finish_transfer(s32 number) {
    Transfer *x = transfer(number);
    if (!x->busy) fail("no such transfer is under way:", (u32)number);
    for (s32 r = 0; r < x->rows; r++) copy(x->to + r * x->step, x->from + r * x->bytes, x->bytes);
    x->busy = 0;
}

#define CHECK_WORDS(name)                                                                        \
    if (words[1] * 4 != sizeof(Op_##name)) fail("wrong number of words of command", words[0])

static void execute(const u32 *words) {
    switch (words[0]) {
    case OP_LOAD_WEIGHTS: {
        const Op_load_weights *op = (const void *)words;
        CHECK_WORDS(load_weights);
        start_transfer(op->transfer, machine.weights + op->source, machine.vtcm + op->out, 1, op->bytes, 0);
        break;
    }
    case OP_LOAD_CACHE: {
        const Op_load_cache *op = (const void *)words;
        CHECK_WORDS(load_cache);
        start_transfer(op->transfer, machine.cache + op->cache, machine.vtcm + op->out, 1, op->bytes, 0);
        break;
    }
    case OP_STORE_LOGITS: {
        const Op_store_logits *op = (const void *)words;
        CHECK_WORDS(store_logits);
        start_transfer(op->transfer, machine.vtcm + op->a, machine.logits + op->column, op->rows, op->row_bytes,
                       op->logits_row_bytes);
        break;
    }
    case OP_WAIT:
        CHECK_WORDS(wait);
        finish_transfer(((const Op_wait *)words)->transfer);
        break;
#define RUN(upper, name)                                                                         \
    case OP_##upper:                                                                             \
        CHECK_WORDS(name);                                                                       \
        name(&machine, (const void *)words);                                                     \
        break;
        KERNELS(RUN)
    default:
        fail("unknown opcode:", words[0]);
    }
}

/* Runs a list, and writes the traced bytes after their commands. Returns the number of commands. */
static s32 run_list(const List *list, s32 trace_count) {
    s32 command = 0, trace = 0;
    for (s32 i = 0; i < list->count; command++) {
        const u32 *words = list->words + i;
        if (command == MOST_COMMANDS) fail("too many commands; the most are", MOST_COMMANDS);
        if (list->count - i < 3 || words[1] < 3 || words[1] > (u32)(list->count - i))
            fail("an op list is damaged at command", (u32)command);
        u32 before = packets();
        execute(words);
        packet_counts[command] = packets() - before;
        for (; trace < trace_count && traces[trace].command == command; trace++)
            send(machine.vtcm + traces[trace].address, (u32)traces[trace].bytes);
        i += (s32)words[1];
    }
    if (trace < trace_count) fail("no such command, or not in order, in trace", (u32)trace);
    for (u32 i = 0; i < TRANSFERS; i++)
        if (transfers[i].busy) fail("a list ends before a wait for transfer", i);
    return command;
}

static Header open_op_list(const char *path) {
    u32 bytes;
    const u32 *words = (const u32 *)map_file(path, INT32_MAX / 2, &bytes);
    Header header = *(const Header *)words;
    if (header.magic != OP_LIST_MAGIC || header.version != OP_LIST_VERSION)
        fail("not an op list of version", OP_LIST_VERSION);
    if (header.lists > MOST_LISTS) fail("too many op lists; the most are", MOST_LISTS);
    u64 at = sizeof(Header) / 4;
    for (u32 i = 0; i < header.lists; i++) {
        List list = {(s32)words[at], (s32)words[at + 1], words + at + 2};
        at += 2 + (u64)words[at + 1];
        if (at * 4 > bytes) fail("an op list is cut off, bytes:", bytes);
        lists[i] = list;
    }
    return header;
}

static void serve(const Header *header) {
    Request q;
    while (receive(&q, sizeof q)) {
        if (q.list < 0 || (u32)q.list >= header->lists) fail("no such op list:", (u32)q.list);
        const List *list = &lists[q.list];
        if (q.first_row < 0 || q.rows < 0 || q.first_row + q.rows > list->tokens)
            fail("rows of logits out of range, first", (u32)q.first_row);
        if (q.trace_count < 0 || q.trace_count > MOST_TRACES) fail("too many traces:", (u32)q.trace_count);
        receive(ids, list->tokens * 4);
        receive(traces, q.trace_count * (s32)sizeof(Trace));
        machine.ids = ids;
        machine.position = q.position;
        s32 commands = run_list(list, q.trace_count);
        u32 row_bytes = header->vocabulary * 4;
        send(machine.logits + (u32)q.first_row * row_bytes, (u32)q.rows * row_bytes);
        if (q.flags & 1) send(packet_counts, (u32)commands * 4);
        send(&commands, sizeof commands);
    }
}

static s32 start(s32 argc, char **argv) {
    if (argc != 3) {
        put("usage: runtime OPLIST WEIGHTS\n");
        return 2;
    }
    Header header = open_op_list(argv[1]);
    u32 tokens = 1;
    for (u32 i = 0; i < header.lists; i++) tokens = (u32)larger((s32)tokens, lists[i].tokens);
    machine.weights = map_file(argv[2], WEIGHTS_LIMIT, &machine.weights_bytes);
    machine.vtcm = memory((u64)header.vtcm_bytes + VECTOR_BYTES);
    machine.gathered = machine.vtcm + (header.vtcm_bytes + VECTOR_BYTES - 1) / VECTOR_BYTES * VECTOR_BYTES;
    machine.cache = memory(header.cache_bytes);
    machine.logits = memory((u64)tokens * header.vocabulary * 4);
    machine.scratch = memory(SCRATCH_BYTES);
    ids = (s32 *)memory((u64)tokens * 4);
    serve(&header);
    return 0;
}

/* Entry: argc and argv lie on the stack, which vectors need aligned. */
static void __attribute__((used)) enter(s32 *stack) { leave(start(stack[0], (char **)(stack + 1))); }
__asm__(".globl _start\n.type _start,@function\n_start:\n"
        "{ r0 = r29 }\n{ r29 = and(r29, #-128) }\n{ r30 = #0\nr31 = #0 }\n{ jump enter }\n");
