/* The inner loops of the solvers for small states on the CPU, where the overhead of a tensor operation is more than
 * its work. Each function is compiled for float and for double; matrices are row-major, (rows, size), and sums are
 * accumulated in double. Rows are shared out among `threads` threads, which are PyTorch's own: its OpenMP runtime is
 * in the process already. The same mathematics as tensor operations stand in loop.py, iterate.py and anderson.py. */
#ifndef REAL
#include <math.h>
#include <stdint.h>
#include <string.h>
#define MAX_MEMORY 32
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__)
#define CLONES __attribute__((target_clones("avx2", "default")))
#else
#define CLONES
#endif

/* What measurements of one matrix after another have in common. */
struct job {
    long threads, rows, size;
    double atol, rtol;
    const double *horizon, *least;
    unsigned char *done;
};

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

/* |fz - z| and |fz| of a row. */
CLONES static void NAME(row_norms)(long size, const REAL *z, const REAL *fz, double *residual, double *scale) {
    double first_sum = 0, second_sum = 0;
    for (long start = 0; start < size; start += 256) {
        long end = start + 256 < size ? start + 256 : size;
        REAL first = 0, second = 0;
#pragma omp simd reduction(+ : first, second)
        for (long i = start; i < end; i++) {
            REAL r = fz[i] - z[i];
            first += r * r;
            second += fz[i] * fz[i];
        }
        first_sum += first;
        second_sum += second;
    }
    *residual = sqrt(first_sum);
    *scale = sqrt(second_sum);
}

/* norms = |fz - z| of each row, then |fz| of each row; those of the rows that are done are 0. Returns how many of the
 * others meet the tolerance, or -1 if there is one that neither does nor has a residual below `least`, or whose |fz| is
 * beyond the horizon. */
long NAME(measure)(const struct job *job, const REAL *z, const REAL *fz, double *norms) {
    long threads = job->threads, rows = job->rows, size = job->size, odd = 0, met = 0;
#pragma omp parallel for num_threads(threads) if (threads > 1) reduction(+ : odd, met)
    for (long b = 0; b < rows; b++) {
        double residual = 0, scale = 0;
        if (!job->done[b]) {
            NAME(row_norms)(size, z + b * size, fz + b * size, &residual, &scale);
            int meets = residual <= job->atol + job->rtol * scale;
            met += meets;
            odd += !((meets || residual < job->least[b]) && scale <= job->horizon[b]);
        }
        norms[b] = residual;
        norms[rows + b] = scale;
    }
    return odd ? -1 : met;
}

/* The rows that `measure` counted become done: point, residual and step of each go to its sample's place. Returns how
 * many these are. */
long NAME(settle)(const struct job *job, const REAL *z, const double *norms, long step, const int64_t *sample,
                  REAL *value, double *residual, int64_t *steps) {
    long rows = job->rows, size = job->size, settled = 0;
    for (long b = 0; b < rows; b++) {
        if (job->done[b] || !(norms[b] <= job->atol + job->rtol * norms[rows + b])) continue;
        job->done[b] = 1;
        residual[sample[b]] = norms[b];
        steps[sample[b]] = step;
        memcpy(value + sample[b] * size, z + b * size, size * sizeof(REAL));
        settled++;
    }
    return settled;
}

/* unit = |right| of each row, or 1 where that is 0, and scaled = right / unit. The entries are divided by the largest
 * first, so that no square under- or overflows. */
void NAME(scale)(long threads, long rows, long size, const REAL *right, REAL *scaled, REAL *unit) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long b = 0; b < rows; b++) {
        const REAL *from = right + b * size;
        REAL *to = scaled + b * size, largest = 0;
        double sum = 0;
#pragma omp simd reduction(max : largest)
        for (long i = 0; i < size; i++) {
            REAL a = from[i] < 0 ? -from[i] : from[i];
            largest = a > largest ? a : largest;
        }
        if (!(largest > 0)) largest = 1;
#pragma omp simd reduction(+ : sum)
        for (long i = 0; i < size; i++) sum += (from[i] / largest) * (from[i] / largest);
        unit[b] = largest * (REAL)(sum > 0 ? sqrt(sum) : 1);
        for (long i = 0; i < size; i++) to[i] = from[i] / unit[b];
    }
}

/* <r, s> / (|r| |s|) of each row, where r = fz - z and s = other_fz - other_z, over its first `columns` entries. */
CLONES void NAME(cosines)(long rows, long size, long columns, const REAL *z, const REAL *fz, const REAL *other_z,
                          const REAL *other_fz, double *cosine) {
    for (long b = 0; b < rows; b++) {
        long at = b * size;
        REAL product = 0, first = 0, second = 0;
#pragma omp simd reduction(+ : product, first, second)
        for (long i = at; i < at + columns; i++) {
            REAL r = fz[i] - z[i], s = other_fz[i] - other_z[i];
            product += r * s;
            first += r * r;
            second += s * s;
        }
        double size_ = sqrt((double)first) * sqrt((double)second);
        cosine[b] = size_ > 0 ? product / size_ : 0;
    }
}

/* Solve the symmetric positive definite n x n system in place by Cholesky; a pivot lost to rounding drops its slot. */
static void NAME(cholesky_solve)(long n, double a[MAX_MEMORY][MAX_MEMORY], double *x) {
    for (long i = 0; i < n; i++) {
        for (long j = 0; j <= i; j++) {
            double sum = a[i][j];
            for (long k = 0; k < j; k++) sum -= a[i][k] * a[j][k];
            if (i == j)
                a[i][i] = sum > 0 ? 1 / sqrt(sum) : 0; /* of the diagonal the inverse, since divisions take long */
            else
                a[i][j] = sum * a[j][j];
        }
    }
    for (long i = 0; i < n; i++) {
        for (long k = 0; k < i; k++) x[i] -= a[i][k] * x[k];
        x[i] *= a[i][i];
    }
    for (long i = n - 1; i >= 0; i--) {
        for (long k = i + 1; k < n; k++) x[i] -= a[k][i] * x[k];
        x[i] *= a[i][i];
    }
}

/* One step of Anderson acceleration of a row: see below. */
CLONES static void NAME(anderson_row)(long size, long slot, long used, double diagonal, double noise, double tiny,
                                      const REAL *z, const REAL *fz, const REAL *last_z, const REAL *last_fz,
                                      REAL damping, int mixes, long memory, REAL *dr, REAL *df, REAL *gram, REAL *out) {
    double matrix[MAX_MEMORY][MAX_MEMORY], gamma[MAX_MEMORY];
    REAL *new_dr = dr + slot * size, *new_df = df + slot * size;
#pragma omp simd
    for (long i = 0; i < size; i++) {
        out[i] = fz[i] - z[i]; /* r, for now */
        new_dr[i] = out[i] - (last_fz[i] - last_z[i]);
        new_df[i] = last_fz[i] - fz[i];
    }
    double square, unused;
    NAME(dots)(new_dr, new_dr, new_dr, size, &square, &unused);
    REAL unit = (REAL)(1 / fmax(sqrt(square + noise * noise), tiny));
#pragma omp simd
    for (long i = 0; i < size; i++) {
        new_dr[i] *= unit;
        new_df[i] *= unit;
    }
    for (long j = 0; j < used; j++) {
        double product, right;
        NAME(dots)(new_dr, out, dr + j * size, size, &product, &right);
        gram[slot * memory + j] = gram[j * memory + slot] = j == slot ? (REAL)diagonal : (REAL)product;
        gamma[j] = mixes ? right : 0;
    }
    for (long i = 0; i < used; i++)
        for (long j = 0; j <= i; j++) matrix[i][j] = gram[i * memory + j];
    NAME(cholesky_solve)(used, matrix, gamma);
#pragma omp simd
    for (long i = 0; i < size; i++) out[i] = fz[i] - damping * out[i];
    for (long j = 0; j < used; j++) {
        const REAL *f = df + j * size, *d = dr + j * size;
        REAL c = (REAL)gamma[j], e = c * damping;
        if (damping == 0) {
#pragma omp simd
            for (long i = 0; i < size; i++) out[i] += c * f[i];
        } else {
#pragma omp simd
            for (long i = 0; i < size; i++) out[i] += c * f[i] + e * d[i];
        }
    }
}

/* One step of Anderson acceleration from z, given the point before. dr, df: (rows, memory, size), since slots a power
 * of two apart would fight for the same lines of the cache; gram: (rows, memory, memory); scale: (rows,), |fz|;
 * keep: (rows,), 1 minus the damping; wait: (rows,), positive where nothing is to be mixed; active: (rows,), 0 where the
 * history is not looked at. Writes the newest difference into `slot` and the next point into `out`. */
void NAME(anderson)(long threads, long rows, long size, long memory, long slot, long used, double diagonal, double eps,
                    double tiny, const REAL *z, const REAL *fz, const double *scale, const REAL *last_z,
                    const REAL *last_fz, const REAL *keep, const REAL *wait, const REAL *active, REAL *dr, REAL *df,
                    REAL *gram, REAL *out) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long b = 0; b < rows; b++) {
        long at = b * size, ring = at * memory;
        REAL damping = 1 - keep[b];
        if (active[b] != 0) {
            NAME(anderson_row)(size, slot, used, diagonal, eps * scale[b], tiny, z + at, fz + at, last_z + at,
                               last_fz + at, damping, wait[b] <= 0, memory, dr + ring, df + ring,
                               gram + b * memory * memory, out + at);
            continue;
        }
        for (long i = 0; i < size; i++) out[at + i] = fz[at + i] - damping * (fz[at + i] - z[at + i]);
    }
}

#endif
