/* The end of a network, and the way back through it: the average of every map, a linear layer, and the cross-entropy of
 * its logits. `compiler.py` compiles this file with the sizes as constants: PIXELS of a map, CI channels, CO classes;
 * BFLOAT16, 1 for maps of such numbers.
 */
#include "numbers.h"
#include "arguments.h"
#include <math.h>
#define EACH_CHANNEL(c) _Pragma("omp simd") for (int c = 0; c < CI; c++)

/* Average the pixels of an image. */
static void average(const element *restrict image, float *restrict features)
{
    memset(features, 0, sizeof(float) * CI);
    for (int u = 0; u < PIXELS; u++)
        EACH_CHANNEL(c) features[c] += as_float(image[u * CI + c]);
    EACH_CHANNEL(c) features[c] /= PIXELS;
}

/* Logits of an image to their gradient, `share` for each; adds its loss, without smoothing, and whether the largest of
 * them, the first of several, is that of its label. */
static void cross_entropy(struct tail_arguments *a, float *logits, int label, float share, double *loss)
{
    int largest = 0;
    for (int k = 1; k < CO; k++)
        if (logits[k] > logits[largest])
            largest = k;
    const float most = logits[largest], of_label = logits[label];
    float exponentials[CO], sum = 0;
    for (int k = 0; k < CO; k++)
        sum += exponentials[k] = expf(logits[k] - most);
    *loss += logf(sum) - (of_label - most);
    a->correct += largest == label;
    for (int k = 0; k < CO; k++) {
        const float target = a->smoothing / CO + (k == label ? 1 - a->smoothing : 0);
        logits[k] = share * (exponentials[k] / sum - target);
    }
}

/* Call one function after another: from Python each of these calls would take microseconds. */
void run(const struct call *calls, int count)
{
    for (int i = 0; i < count; i++)
        calls[i].function(calls[i].argument);
}

/* From the maps to the loss, how many images are classified correctly, and the gradients of weight, bias and maps. */
void tail(struct tail_arguments *a)
{
    const float *restrict weight = a->weight;
    float *restrict grad_weight = a->grad_weight;
    double loss = 0;
    a->correct = 0;
    memset(grad_weight, 0, sizeof(float) * CO * CI);
    if (a->bias)
        memset(a->grad_bias, 0, sizeof(float) * CO);
    for (int64_t i = 0; i < a->images; i++) {
        float features[CI], gradient[CI] = {0}, logits[CO];
        average(a->input + i * PIXELS * CI, features);
        for (int k = 0; k < CO; k++) {
            float sum = a->bias ? a->bias[k] : 0;
            _Pragma("omp simd reduction(+:sum)") for (int c = 0; c < CI; c++) sum += weight[k * CI + c] * features[c];
            logits[k] = sum;
        }
        cross_entropy(a, logits, (int)a->labels[i], 1.f / a->images, &loss);
        for (int k = 0; k < CO; k++) {
            if (a->bias)
                a->grad_bias[k] += logits[k];
            EACH_CHANNEL(c) {
                grad_weight[k * CI + c] += logits[k] * features[c];
                gradient[c] += logits[k] * weight[k * CI + c];
            }
        }
        element share[CI];
        EACH_CHANNEL(c) share[c] = rounded(gradient[c] / PIXELS);
        for (int u = 0; u < PIXELS; u++)
            memcpy(a->grad_input + (i * PIXELS + u) * CI, share, sizeof share);
    }
    a->loss = (float)(loss / a->images);
}
