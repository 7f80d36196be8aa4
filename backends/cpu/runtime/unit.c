/* The kernels and the program for one instruction set, as one unit: the build compiles it once for each, with
 * MQC_UNIT its name. What other files call is then static: only the program itself is visible, by the set's name. */
#define JOINED(a, b) a##b
#define JOIN(a, b) JOINED(a, b)
#define mqc_program JOIN(mqc_program_, MQC_UNIT)

#include "attention.c"
#include "convolution.c"
#include "dot.c"
#include "elementwise.c"
#include "experts.c"
#include "linear.c"
#include "linear_attention.c"
#include "norms.c"
#include "requant.c"
#include "routing.c"

#include "program.c"
