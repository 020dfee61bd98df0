"""The text of exported C: functions that exported models call, and the files around them."""

from .c_pieces import GROUP

# Statements that no function below covers are loops, which `c_arrays` writes.
_LINEAR = """/* y (rows, columns) = x (rows, inner) w^T + b, w (columns, inner) */
static void linear_{kind}({arguments}, const float *b, float *y, int rows, int inner, int columns)
{{
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) {{
            float sum = 0;
            for (int i = 0; i < inner; i++) sum += x[r * inner + i] * {weight}w[c * inner + i];
            y[r * columns + c] = {total} + (b ? b[c] : 0);
        }}
}}
"""
_CONV = """/* y (O, OH, OW) = the convolution of x (C, H, W) with w (O, C, KH, KW), and b */
static void conv2d_{kind}({arguments}, const float *b, float *y, int C, int H, int W, int O, int KH, int KW,
                         int OH, int OW, int SH, int SW, int PH, int PW)
{{
    for (int o = 0; o < O; o++)
        for (int r = 0; r < OH; r++)
            for (int c = 0; c < OW; c++) {{
                float sum = 0;
                for (int k = 0; k < C; k++)
                    for (int i = 0; i < KH; i++)
                        for (int j = 0; j < KW; j++) {{
                            int row = r * SH + i - PH, column = c * SW + j - PW;
                            if (row < 0 || row >= H || column < 0 || column >= W) continue;
                            sum += x[(k * H + row) * W + column] * {weight}w[((o * C + k) * KH + i) * KW + j];
                        }}
                y[(o * OH + r) * OW + c] = {total} + (b ? b[o] : 0);
            }}
}}
"""
_FLOAT = {"kind": "float", "arguments": "const float *x, const float *w", "weight": "", "total": "sum"}
_INT8 = {
    "kind": "int8",
    "arguments": "const float *x, const signed char *w, const unsigned short *scale, float unit",
    "weight": "(float)",
}

_FUNCTIONS = (
    _LINEAR.format(**_FLOAT),
    _LINEAR.format(**{**_INT8, "total": "sum * ((float)scale[c] * unit)"}),
    _CONV.format(**_FLOAT),
    _CONV.format(**{**_INT8, "total": "sum * ((float)scale[o] * unit)"}),
    """/* each row of x (rows, n) with mean 0 and variance 1, times w, plus b */
static void layer_norm(const float *x, const float *w, const float *b, float *y, int rows, int n, float eps)
{
    for (int r = 0; r < rows; r++, x += n, y += n) {
        float mean = 0, square = 0;
        for (int i = 0; i < n; i++) mean += x[i];
        mean /= (float)n;
        for (int i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean);
        float rstd = 1.0f / sqrtf(square / (float)n + eps);
        for (int i = 0; i < n; i++) y[i] = (x[i] - mean) * rstd * w[i] + b[i];
    }
}
""",
    """\
/* y (H, N, D) = softmax(scale q k^T + bias) v over the S keys that mask and causal leave.
   Strides: of q, k, v and y those of heads and rows; of mask and bias those of heads, queries and keys.
   p has room for S numbers. */
static void attention(const float *q, int qh, int qn, const float *k, int kh, int kn, const float *v, int vh, int vn,
                      float *y, int yh, int yn, const float *mask, int mh, int mn, int ms,
                      const float *bias, int bh, int bn, int bs,
                      float *p, int H, int N, int S, int D, int causal, float scale)
{
    for (int h = 0; h < H; h++)
        for (int n = 0; n < N; n++) {
            float peak = -INFINITY, total = 0;
            for (int s = 0; s < S; s++) {
                float sum = 0;
                for (int d = 0; d < D; d++) sum += q[h * qh + n * qn + d] * k[h * kh + s * kn + d];
                p[s] = sum * scale + (bias ? bias[h * bh + n * bn + s * bs] : 0);
                if ((mask && mask[h * mh + n * mn + s * ms] == 0) || (causal && s > n)) p[s] = -INFINITY;
                if (p[s] > peak) peak = p[s];
            }
            for (int s = 0; s < S; s++) {
                p[s] = peak == -INFINITY ? 0 : expf(p[s] - peak);
                total += p[s];
            }
            for (int d = 0; d < D; d++) {
                float sum = 0;
                for (int s = 0; s < S; s++) sum += p[s] * v[h * vh + s * vn + d];
                y[h * yh + n * yn + d] = total > 0 ? sum / total : 0;
            }
        }
}
""",
    f"""/* y (n) = x, of which {GROUP} numbers share a factor */
static void widen(const signed char *x, const unsigned short *scale, float unit, float *y, int n)
{{
    for (int i = 0; i < n; i++) y[i] = (float)x[i] * ((float)scale[i / {GROUP}] * unit);
}}
""",
    """/* y (rows) = the sum of each row of x (rows, n) */
static void row_sums(const float *x, float *y, int rows, int n)
{
    for (int r = 0; r < rows; r++) {
        y[r] = 0;
        for (int i = 0; i < n; i++) y[r] += x[r * n + i];
    }
}
""",
    """/* y (rows) = the largest number of each row of x (rows, n) */
static void row_peaks(const float *x, float *y, int rows, int n)
{
    for (int r = 0; r < rows; r++) {
        y[r] = x[r * n];
        for (int i = 1; i < n; i++) if (x[r * n + i] > y[r]) y[r] = x[r * n + i];
    }
}
""",
)
# By their names.
BODIES = {text.partition("static void ")[2].partition("(")[0]: text for text in _FUNCTIONS}

SOURCE = """/* {title}, written by tinyvit. C99; no library but libm, no memory but what is stated here.

   {memory} bytes of working memory, {weights} bytes of weights{kind}.
   Not to be called by two threads at once: the working memory is static.

   cc -std=c99 -O2 -o example main.c {name}.c -lm
*/
#include <math.h>
#include <stddef.h>

#define {macro}_WEIGHTS
#include "{name}.h"

static float memory[{floats}];

{bodies}
int {name}_run({parameters})
{{
    {statements}
    return 0;
}}
"""

HEADER = """/* {title}, written by tinyvit. */
#ifndef {macro}_H
#define {macro}_H

{facts}

/* Compute the outputs for {inputs}.
   Returns 0, or -1 if an id of a token is out of its range. */
int {name}_run({parameters});

#endif

#if defined {macro}_WEIGHTS && !defined {macro}_WEIGHTS_H
#define {macro}_WEIGHTS_H
{weights}
#endif
"""

MAIN = """/* An example: it runs the model once on what is in example.h, prints the outputs, and compares them with
   those that tinyvit computed. The exit status is 0 if they agree.

   cc -std=c99 -O2 -o example main.c {name}.c -lm
*/
#include <math.h>
#include <stdio.h>

#include "{name}.h"
#include "example.h"

{names}/* Print the first numbers of an output in columns, and return how many of all differ from the expected ones
   by more than {tolerance} of the largest. */
static int compared(const char *output, const float *found, const float *expected, int size)
{{
    float largest = 0;
    int wrong = 0;
    printf({head}, "number", output{head_of_names});
    for (int i = 0; i < size; i++) if (fabsf(expected[i]) > largest) largest = fabsf(expected[i]);
    for (int i = 0; i < size; i++) {{
        if (i < {shown}) printf({line});
        if (!(fabsf(found[i] - expected[i]) <= {tolerance}f * largest)) wrong++;
    }}
    if (size > {shown}) printf("and %d more\\n", size - {shown});
    return wrong;
}}

int main(void)
{{
    {outputs}
    int wrong = 0;
    if ({name}_run({arguments}) != 0) return 1;
    {calls}
    {best}printf(wrong ? "outputs that are not as expected: %d\\n" : "as expected\\n", wrong);
    return wrong ? 2 : 0;
}}
"""
# Of one output: its largest number, such as the logit of the most probable class.
BEST = """int best = 0;
    for (int i = 1; i < {macro}_OUTPUT_SIZE; i++) if (output[i] > output[best]) best = i;
    printf({line});
    """
