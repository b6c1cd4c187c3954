/* What Python hands to the functions in C: `arguments.py` has structures with the same fields in the same order.
 * Comments give shapes; images are channels last. */
struct block_arguments {
    const element *input;                     /* images × IMAGE_SIDE × IMAGE_SIDE × CI: without its padding */
    const float *weight;                      /* CO × KERNEL × KERNEL × CI */
    const float *bias;                        /* CO: of the convolution, where it has one */
    const float *gamma, *beta;                /* CO: weight and bias of batch norm */
    float *running_mean, *running_variance;   /* CO */
    int64_t *batches;                         /* so many were normalised; null where nobody counts */
    const float *factor, *offset;             /* CO: batch norm outside training, factor × value + offset */
    const element *other;                     /* like the output: what is added to it, where there is a sum */
    element *convolved;                       /* images × OUT × OUT × CO: after ReLU where that comes first */
    element *output;                          /* images × POOLED × POOLED × CO */
    float *statistics;                        /* 2 × CO: mean and 1/deviation of the batch */
    uint8_t *argmax;                          /* like the output: which element of its square a max-pool took */
    uint8_t *dropped;                         /* images × IMAGE_OF_BITS: which elements dropout takes, a bit each */
    const element *grad_output;               /* like the output */
    element *grad_input;                      /* like the input; null where nobody asks for it */
    element *grad_other;                      /* like the output: of the sum, where ReLU follows it */
    float *grad_weight, *grad_bias, *grad_gamma, *grad_beta;
    uint64_t dropout_seed;
    uint32_t dropout_limit;                   /* so many of 65,536 elements are dropped */
    float dropout_scale;                      /* what the others are multiplied by */
    float momentum, epsilon;                  /* of batch norm */
    int images, threads;
};

struct depthwise_arguments {
    const element *input;                     /* images × IMAGE_SIDE × IMAGE_SIDE × CHANNELS: without its padding */
    const float *weight;                      /* CHANNELS × KERNEL × KERNEL */
    const float *bias;                        /* CHANNELS: where it has one */
    element *output;                          /* images × OUT × OUT × CHANNELS */
    const element *grad_output;               /* like the output */
    element *grad_input;                      /* like the input; null where nobody asks for it */
    float *grad_weight, *grad_bias;           /* like the weight and the bias */
    int images, threads;
};

struct separable_arguments {
    const void *input;                        /* images × SIDE × SIDE × CI: `pooled` of the block before, or floats */
    const float *in_factor, *in_offset;       /* CI: batch norm of the block before */
    const float *in_statistics;               /* 2 × CI: likewise */
    const float *depthwise;                   /* CI × KERNEL × KERNEL */
    const float *weight;                      /* CO × CI; CO × KERNEL × KERNEL × CI of the first block */
    const float *gamma, *beta;                /* CO: weight and bias of batch norm */
    float *running_mean, *running_variance;   /* CO */
    element *convolved;                       /* images × OUT × OUT × CO: in front of batch norm */
    element *pooled;                          /* images × POOLED × POOLED × CO: likewise; `convolved` without pooling */
    float *statistics;                        /* 2 × CO: mean and 1/deviation of the batch */
    float *factor, *offset;                   /* CO: batch norm is factor × value + offset */
    float *output;                            /* like `pooled`: of the last block, after ReLU */
    const float *grad_output;                 /* like the output */
    element *gradient;                        /* like `pooled`: of batch norm's output where the max-pool took it */
    double *sums;                             /* 2 × CO: of `gradient`, and of its products with the deviations */
    element *in_gradient;                     /* like the input: `gradient` of the block before */
    double *in_sums;                          /* 2 × CI: `sums` of the block before */
    float *grad_depthwise, *grad_weight, *grad_gamma, *grad_beta;
    int64_t *batches;                         /* so many were normalised; null where nobody counts */
    float momentum, epsilon;                  /* of batch norm */
    int images, threads;
};

struct tail_arguments {
    const element *input;                     /* images × PIXELS × CI */
    const float *weight, *bias;               /* CO × CI and CO; null without a bias */
    const int64_t *labels;                    /* images */
    element *grad_input;                      /* like the input */
    float *grad_weight, *grad_bias;
    float smoothing, loss;                    /* of the labels; the mean cross-entropy without it */
    int images, correct;                      /* so many are classified correctly */
};

struct call {
    void (*function)(void *);
    void *argument;
};

struct augment_arguments {
    const uint8_t *input;                     /* images × CHANNELS × HIGH × WIDE */
    const float *light;                       /* 4 × images, rows so many numbers apart; null where there is none */
    const float *mapping;                     /* images × 2 × 3; null likewise */
    float *output;                            /* like the input */
    int64_t step;
    int images, nearest;                      /* 1 for the nearest pixels, 0 for those between them */
};

struct muon_tensor {
    float *weight;
    const float *gradient;
    float *momentum;                          /* all three as they lie in memory */
    int rows, columns;
};

struct muon_arguments {
    const struct muon_tensor *tensors;
    float lr, momentum, decay;                /* what weights are multiplied by before the step */
    int count, nesterov, steps;               /* of Newton-Schulz; none for tensors of one dimension */
};

struct sgd_tensor {
    float *weight;
    const float *gradient;
    float *momentum;                          /* all three as they lie in memory; null without a momentum */
    int count;
};

struct sgd_arguments {
    const struct sgd_tensor *tensors;
    float lr, momentum, weight_decay;
    int count, nesterov;
};
