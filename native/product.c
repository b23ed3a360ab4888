/* A product of Q8_0 weights through a kernel library, and the same in plain C.
 *
 *     cc -I DIR native/product.c DIR/libedgerun-x86_64-linux-avx2.so -Wl,-rpath,DIR -lm -o product && ./product
 *
 * DIR: where `python -m native.build --output DIR` put the library and its header. Prints the largest difference;
 * returns 1 when that is more than the rounding of activations to int8 allows.
 */
#include "edgerun_kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 50, COLS = 256, TOKENS = 3, BLOCK = 32, BLOCK_BYTES = 34, BLOCKS = COLS / BLOCK, MOST_LANES = 16 };

static int64_t at(const void *memory) { return (int64_t)(intptr_t)memory; }

static void *zeros(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory) exit(2);
    return memset(memory, 0, (bytes + 63) / 64 * 64);
}

static float random_float(void) { return (float)rand() / (float)RAND_MAX * 2 - 1; }

int main(void)
{
    int lanes = strstr(edgerun_library.isa, "avx512") ? 16 : 8;
    int groups = (ROWS + lanes - 1) / lanes;
    if (edgerun_library.abi_version != EDGERUN_ABI_VERSION) return 2;
    printf("%s: %lld kernels, %s\n", edgerun_library.isa, (long long)edgerun_library.count, edgerun_library.built);

    /* Q8_0 rows as a GGUF file has them: a scale in f16 (here 1 / 64), then 32 signed bytes. */
    uint8_t *raw = zeros(ROWS * BLOCKS * BLOCK_BYTES);
    for (int block = 0; block < ROWS * BLOCKS; block++) {
        raw[block * BLOCK_BYTES + 1] = 0x24;
        for (int i = 0; i < BLOCK; i++) raw[block * BLOCK_BYTES + 2 + i] = (uint8_t)(rand() % 255 - 127);
    }
    float *x = zeros(sizeof(float) * TOKENS * COLS);
    for (int i = 0; i < TOKENS * COLS; i++) x[i] = random_float();

    uint8_t *packed = zeros((size_t)groups * lanes * BLOCKS * BLOCK_BYTES);
    struct edgerun_pack pack = {at(raw), BLOCKS * BLOCK_BYTES, ROWS, at(packed), BLOCKS, 0};
    edgerun_pack_q8_0(at(&pack), 0, groups);

    int8_t *quants = zeros(TOKENS * COLS);
    float *scales = zeros(sizeof(float) * TOKENS * BLOCKS), *sums = zeros(EDGERUN_Q8_SUMS_BYTES * TOKENS * BLOCKS);
    struct edgerun_quantize quantize = {at(x), COLS, at(quants), at(scales), at(sums)};
    edgerun_quantize_q8(at(&quantize), 0, TOKENS);

    float *out = zeros(sizeof(float) * TOKENS * ROWS);
    uint8_t *launch = zeros(EDGERUN_LIST_AT + sizeof(struct edgerun_product));
    struct edgerun_products head = {1};
    struct edgerun_product product = {
        .weights = at(packed), .out = at(out), .tokens = TOKENS, .blocks = BLOCKS, .rows = ROWS,
        .out_stride = sizeof(float) * ROWS,
        .quants = at(quants), .quants_stride = COLS,
        .scales = at(scales), .scales_stride = sizeof(float) * BLOCKS,
        .sums = at(sums), .sums_stride = EDGERUN_Q8_SUMS_BYTES * BLOCKS,
    };
    memcpy(launch, &head, sizeof head);
    memcpy(launch + EDGERUN_LIST_AT, &product, sizeof product);
    edgerun_matmul_q8_0(at(launch), 0, groups);

    double most = 0, allowed = 0;
    for (int token = 0; token < TOKENS; token++)
        for (int row = 0; row < ROWS; row++) {
            double exact = 0, sizes = 0;
            for (int i = 0; i < COLS; i++) {
                double w = (int8_t)raw[(row * BLOCKS + i / BLOCK) * BLOCK_BYTES + 2 + i % BLOCK] / 64.0;
                exact += w * x[token * COLS + i];
                sizes += fabs(w);
            }
            most = fmax(most, fabs(out[token * ROWS + row] - exact));
            allowed = fmax(allowed, sizes * 0.5 / 127); /* half a step of int8, of a largest value below 1 */
        }
    printf("largest difference %.4f, allowed %.4f, first result %.4f\n", most, allowed, out[0]);
    return most <= allowed && out[0] != 0 ? 0 : 1;
}
