#include "instruction_sets.h"

#if defined(__aarch64__)
#include <sys/auxv.h>

/* Bits as Linux has them. */
static int has(unsigned long bits, int bit) { return (int)(bits >> bit & 1); }
static __attribute__((unused)) int runs_neon(void) { return has(getauxval(AT_HWCAP), 1); }
static __attribute__((unused)) int runs_dotprod(void) { /* what -march=armv8.2-a+dotprod lets a compiler use */
    static const int needed[] = {1 /* asimd */, 7 /* crc32 */, 8 /* atomics */, 12 /* asimdrdm */, 20 /* asimddp */};
    int all = 1;
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) all &= has(getauxval(AT_HWCAP), needed[i]);
    return all;
}
static __attribute__((unused)) int runs_i8mm(void) { return runs_dotprod() && has(getauxval(AT_HWCAP2), 13); }

#elif defined(__x86_64__)

static __attribute__((unused)) int runs_avx2(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
}
static __attribute__((unused)) int runs_avx512vnni(void) {
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}

#endif

static __attribute__((unused)) int runs_portable(void) { return 1; }

/* The build writes sets.h: SET(name) for each that it compiled. */
#define SET(name) extern const Program mqc_program_##name;
#include "sets.h"
#undef SET
#define SET(name) {#name, runs_##name, &mqc_program_##name},
const InstructionSet mqc_instruction_sets[] = {
#include "sets.h"
    {0, 0, 0}};
