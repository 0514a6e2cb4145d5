/* The inner loops of the solvers for small states on the CPU, where the overhead of a tensor operation is more than
 * its work. Each function is compiled for float and for double; matrices are row-major, (rows, size), and sums are
 * accumulated in double. The same mathematics as tensor operations stand in loop.py, iterate.py
 * and anderson.py. */
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

/* <a, c> and <b, c>. */
static inline __attribute__((always_inline)) void NAME(dots)(const REAL *a, const REAL *b, const REAL *c, long size,
                                                             double *ac, double *bc) {
    *ac = *bc = 0;
    for (long start = 0; start < size; start += 256) { /* short sums in REAL vectorize, and lose nothing */
        long end = start + 256 < size ? start + 256 : size;
        REAL first = 0, second = 0;
#pragma omp simd reduction(+ : first, second)
        for (long i = start; i < end; i++) {
            first += a[i] * c[i];
            second += b[i] * c[i];
        }
        *ac += first;
        *bc += second;
    }
}

/* norms = |fz - z| of each row, then |fz| of each row. Returns in how many rows the residual is below `least` but
 * above the tolerance, and |fz| not beyond the horizon, or which are done, and have norms of 0. */
CLONES long NAME(measure)(long rows, long size, double atol, double rtol, const REAL *z, const REAL *fz,
                          const double *least, const double *horizon, const unsigned char *done, double *norms) {
    long usual = 0;
    for (long b = 0; b < rows; b++, z += size, fz += size) {
        if (done[b]) {
            norms[b] = norms[rows + b] = 0;
            usual++;
            continue;
        }
        double residual = 0, scale = 0;
        for (long start = 0; start < size; start += 256) {
            long end = start + 256 < size ? start + 256 : size;
            REAL first = 0, second = 0;
#pragma omp simd reduction(+ : first, second)
            for (long i = start; i < end; i++) {
                REAL r = fz[i] - z[i];
                first += r * r;
                second += fz[i] * fz[i];
            }
            residual += first;
            scale += second;
        }
        norms[b] = residual = sqrt(residual);
        norms[rows + b] = scale = sqrt(scale);
        usual += residual < least[b] && residual > atol + rtol * scale && scale <= horizon[b];
    }
    return usual;
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

/* One step of Anderson acceleration from z, given the point before. dr, df: (rows, memory, size), since slots a power
 * of two apart would fight for the same lines of the cache; gram: (rows, memory, memory); scale: (rows,), |fz|;
 * keep: (rows,), 1 minus the damping; wait: (rows,), positive where nothing is to be mixed; active: (rows,), 0 where the
 * history is empty and stays so. Writes the newest difference into `slot` and the next point into `out`. */
CLONES void NAME(anderson)(long rows, long size, long memory, long slot, long used, double diagonal, double eps,
                           double tiny, const REAL *z, const REAL *fz, const double *scale, const REAL *last_z,
                           const REAL *last_fz, const REAL *keep, const REAL *wait, const REAL *active, REAL *dr,
                           REAL *df, REAL *gram, REAL *out) {
    double matrix[MAX_MEMORY][MAX_MEMORY], gamma[MAX_MEMORY];
    for (long b = 0; b < rows; b++, z += size, fz += size, last_z += size, last_fz += size, out += size,
              dr += memory * size, df += memory * size, gram += memory * memory) {
        REAL *new_dr = dr + slot * size, *new_df = df + slot * size;
        REAL damping = 1 - keep[b];
        if (active[b] == 0) {
            for (long i = 0; i < size; i++) out[i] = fz[i] - damping * (fz[i] - z[i]);
            continue;
        }
        for (long i = 0; i < size; i++) {
            out[i] = fz[i] - z[i]; /* r, for now */
            new_dr[i] = out[i] - (last_fz[i] - last_z[i]);
            new_df[i] = last_fz[i] - fz[i];
        }
        double square, unused, noise = eps * scale[b];
        NAME(dots)(new_dr, new_dr, new_dr, size, &square, &unused);
        REAL unit = (REAL)(1 / fmax(sqrt(square + noise * noise), tiny));
        for (long i = 0; i < size; i++) {
            new_dr[i] *= unit;
            new_df[i] *= unit;
        }
        for (long j = 0; j < used; j++) {
            double product, right;
            NAME(dots)(new_dr, out, dr + j * size, size, &product, &right);
            gram[slot * memory + j] = gram[j * memory + slot] = j == slot ? (REAL)diagonal : (REAL)product;
            gamma[j] = wait[b] > 0 ? 0 : right;
        }
        for (long i = 0; i < used; i++)
            for (long j = 0; j <= i; j++) matrix[i][j] = gram[i * memory + j];
        NAME(cholesky_solve)(used, matrix, gamma);
        for (long i = 0; i < size; i++) out[i] = fz[i] - damping * out[i];
        for (long j = 0; j < used; j++) {
            const REAL *f = df + j * size, *d = dr + j * size;
            REAL c = (REAL)gamma[j], e = c * damping;
            if (damping == 0)
                for (long i = 0; i < size; i++) out[i] += c * f[i];
            else
                for (long i = 0; i < size; i++) out[i] += c * f[i] + e * d[i];
        }
    }
}

#endif
