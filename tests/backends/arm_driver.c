/* Runs a program's library as the Python engine does, for requests that come by a pipe.
 *
 * driver LIBRARY CONSTANTS THREADS VOCABULARY
 *
 * CONSTANTS: u64 count, u64 offsets [count], and what they lead to. A request is s32 tokens, position, row,
 * with tokens > 0 then s32 ids [tokens]: the answer is the logits of rows from `row` on. Without tokens it is
 * keys and values, u8 each, of layer `row` at the position: the answer is one s32.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "engine.h"

typedef struct Engine Engine;

static void *find(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (!found) fprintf(stderr, "no %s\n", name), exit(3);
    return found;
}

static const void **map(const char *path) {
    struct stat status;
    int file = open(path, O_RDONLY);
    if (file < 0 || fstat(file, &status)) perror(path), exit(3);
    const u8 *data = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    if (data == MAP_FAILED) perror(path), exit(3);
    const u64 *offsets = (const u64 *)data + 1;
    u64 count = offsets[-1];
    const void **constants = calloc(count, sizeof *constants);
    for (u64 i = 0; i < count; i++) constants[i] = data + offsets[i];
    return constants;
}

static void receive(void *data, size_t bytes) {
    if (fread(data, 1, bytes, stdin) != bytes) fputs("the request ends early\n", stderr), exit(3);
}

static void answer(const void *data, size_t bytes) {
    fwrite(data, 1, bytes, stdout);
    fflush(stdout);
}

int main(int count, char **arguments) {
    if (count != 5) return 3;
    void *library = dlopen(arguments[1], RTLD_NOW);
    if (!library) fprintf(stderr, "%s\n", dlerror()), exit(3);
    const Program *program = find(library, "mqc_program");
    Engine *(*start)(const Program *, const void *const *, int, const void *) = find(library, "mqc_engine_open");
    void (*stop)(Engine *) = find(library, "mqc_engine_close");
    void (*write_cache)(Engine *, int, int, int, const u8 *, const u8 *) = find(library, "mqc_engine_write");
    void (*forward)(Engine *, const s32 *, int, int, int, s32 *) = find(library, "mqc_engine_run");

    Engine *engine = start(program, map(arguments[2]), atoi(arguments[3]), NULL);
    if (!engine) fputs("mqc_engine_open failed\n", stderr), exit(3);
    size_t vocabulary = (size_t)atol(arguments[4]);
    s32 *logits = malloc(CHUNK * vocabulary * sizeof *logits), ids[CHUNK], head[3];
    while (fread(head, sizeof head, 1, stdin) == 1) {
        s32 tokens = head[0], position = head[1], row = head[2];
        if (tokens) {
            receive(ids, (size_t)tokens * sizeof *ids);
            forward(engine, ids, tokens, position, row, logits);
            answer(logits, (size_t)(tokens - row) * vocabulary * sizeof *logits);
        } else {
            RowBytes size = row_bytes(program, row);
            u8 *rows = malloc(size.first + size.second);
            receive(rows, size.first + size.second);
            write_cache(engine, row, position, 1, rows, rows + size.first);
            free(rows);
            answer(head, sizeof *head);
        }
    }
    stop(engine);
    free(logits);
    return 0;
}
