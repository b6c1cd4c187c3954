/* What batch norm takes from a batch, for blocks and for those of a chain: images × AREA × CO numbers. */
#include <math.h>

/* Where a channel's mean is large beside its deviation, the mean of squares less the square of the mean leaves few
 * digits of a variance: below this share of the mean of squares it is computed anew, from the deviations. */
#define INEXACT 1e-3
static double exact_variance(const element *convolved, int64_t pixels, int channel, double mean)
{
    double sum = 0;
    for (int64_t u = 0; u < pixels; u++) {
        double deviation = as_float(convolved[u * CO + channel]) - mean;
        sum += deviation * deviation;
    }
    return sum / pixels;
}

/* From each channel's sum and that of its squares, 2 × CO, to the mean and 1/deviation of the batch, likewise, and to
 * the running ones; a bias that was left out is added to the running mean. */
static inline void batch_statistics(const element *convolved, int64_t pixels, const double *sums, const float *bias,
                                    float momentum, float epsilon, float *statistics, float *mean, float *variance)
{
    const double n = (double)pixels;
    for (int c = 0; c < CO; c++) {
        double m = sums[c] / n, squares = sums[CO + c] / n, v = squares - m * m;
        v = v < INEXACT * squares ? exact_variance(convolved, pixels, c, m) : v;
        statistics[c] = (float)m;
        statistics[CO + c] = (float)(1 / sqrt(v + epsilon));
        mean[c] += momentum * ((float)(bias ? m + bias[c] : m) - mean[c]);
        variance[c] += momentum * ((float)(v * n / (n - 1)) - variance[c]);
    }
}
