/* The inner loops of the solvers for small states on the CPU, where the overhead of a tensor operation is more than
 * its work. Each function is compiled for float and for double; matrices are row-major, (rows, size), and sums are
 * accumulated in double. The same mathematics as tensor operations stand in base.py and anderson.py. */
#ifndef REAL
#include <math.h>
#define MAX_MEMORY 32
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__)
#define CLONES __attribute__((target_clones("avx2", "default")))
#else
#define CLONES
#endif

#define REAL float
#define NAME(x) x##_f32
#include __FILE__
#undef REAL
#undef NAME
#define REAL double
#define NAME(x) x##_f64
#include __FILE__

#else

static inline __attribute__((always_inline)) double NAME(dot)(const REAL *a, const REAL *b, long size) {
    REAL sum = 0;
    double total = 0;
    for (long start = 0; start < size; start += 256) { /* short sums in REAL vectorize, and lose nothing */
        long end = start + 256 < size ? start + 256 : size;
        sum = 0;
#pragma omp simd reduction(+ : sum)
        for (long i = start; i < end; i++) sum += a[i] * b[i];
        total += sum;
    }
    return total;
}

/* r = fz - z; norms[row] = (|r|, |fz|). */
CLONES void NAME(residual)(long rows, long size, const REAL *z, const REAL *fz, REAL *r, REAL *norms) {
    for (long b = 0; b < rows; b++, z += size, fz += size, r += size) {
#pragma omp simd
        for (long i = 0; i < size; i++) r[i] = fz[i] - z[i];
        norms[2 * b] = (REAL)sqrt(NAME(dot)(r, r, size));
        norms[2 * b + 1] = (REAL)sqrt(NAME(dot)(fz, fz, size));
    }
}

/* Solve the symmetric positive definite n x n system in place by Cholesky; a pivot lost to rounding drops its slot. */
static void NAME(cholesky_solve)(long n, double a[MAX_MEMORY][MAX_MEMORY], double *x) {
    for (long i = 0; i < n; i++) {
        for (long j = 0; j <= i; j++) {
            double sum = a[i][j];
            for (long k = 0; k < j; k++) sum -= a[i][k] * a[j][k];
            if (i == j)
                a[i][i] = sum > 0 ? sqrt(sum) : INFINITY;
            else
                a[i][j] = sum / a[j][j];
        }
    }
    for (long i = 0; i < n; i++) {
        for (long k = 0; k < i; k++) x[i] -= a[i][k] * x[k];
        x[i] /= a[i][i];
    }
    for (long i = n - 1; i >= 0; i--) {
        for (long k = i + 1; k < n; k++) x[i] -= a[k][i] * x[k];
        x[i] /= a[i][i];
    }
}

/* One step of Anderson acceleration. dr, df: (memory, rows, size); gram: (memory, memory, rows); keep: (rows,), 1 minus
 * the damping; wait: (rows,), positive where nothing is to be mixed; active: (rows,), 0 where no difference is to be
 * kept. Writes the newest difference into `slot` and the next point into `out`. */
CLONES void NAME(anderson)(long rows, long size, long memory, long slot, long used, double diagonal, double eps, double tiny,
                    const REAL *r, const REAL *fz, const REAL *norms, const REAL *last_r, const REAL *last_fz,
                    const REAL *keep, const REAL *wait, const REAL *active, REAL *dr, REAL *df, REAL *gram, REAL *out) {
    double matrix[MAX_MEMORY][MAX_MEMORY], gamma[MAX_MEMORY];
    long slab = rows * size;
    for (long b = 0; b < rows; b++) {
        long at = b * size;
        REAL *new_dr = dr + slot * slab + at, *new_df = df + slot * slab + at;
        REAL damping = 1 - keep[b];
        if (active[b] == 0) {
            for (long i = 0; i < size; i++) {
                new_dr[i] = new_df[i] = 0;
                out[at + i] = fz[at + i] - damping * r[at + i];
            }
            for (long j = 0; j < used; j++)
                gram[(slot * memory + j) * rows + b] = gram[(j * memory + slot) * rows + b] =
                    j == slot ? (REAL)diagonal : 0;
            continue;
        }
        for (long i = 0; i < size; i++) {
            new_dr[i] = r[at + i] - last_r[at + i];
            new_df[i] = last_fz[at + i] - fz[at + i];
        }
        double noise = eps * norms[2 * b + 1];
        REAL scale = (REAL)(1 / fmax(sqrt(NAME(dot)(new_dr, new_dr, size) + noise * noise), tiny));
        for (long i = 0; i < size; i++) {
            new_dr[i] *= scale;
            new_df[i] *= scale;
        }
        for (long j = 0; j < used; j++) {
            const REAL *other = dr + j * slab + at;
            REAL product = j == slot ? (REAL)diagonal : (REAL)NAME(dot)(other, new_dr, size);
            gram[(slot * memory + j) * rows + b] = gram[(j * memory + slot) * rows + b] = product;
            gamma[j] = wait[b] > 0 ? 0 : NAME(dot)(other, r + at, size);
        }
        for (long i = 0; i < used; i++)
            for (long j = 0; j <= i; j++) matrix[i][j] = gram[(i * memory + j) * rows + b];
        NAME(cholesky_solve)(used, matrix, gamma);
        for (long i = 0; i < size; i++) out[at + i] = fz[at + i] - damping * r[at + i];
        for (long j = 0; j < used; j++) {
            const REAL *f = df + j * slab + at, *d = dr + j * slab + at;
            REAL c = (REAL)gamma[j], e = c * damping;
            if (damping == 0)
                for (long i = 0; i < size; i++) out[at + i] += c * f[i];
            else
                for (long i = 0; i < size; i++) out[at + i] += c * f[i] + e * d[i];
        }
    }
}

#endif
