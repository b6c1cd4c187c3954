/* What Python hands to the functions in C: `arguments.py` has structures with the same fields in the same order.
 * Comments give shapes; images are channels last. */
struct block_arguments {
    const element *input;                     /* images × SIDE × SIDE × CI */
    const float *weight;                      /* CO × KERNEL × KERNEL × CI */
    const float *gamma, *beta;                /* CO: weight and bias of batch norm */
    float *running_mean, *running_variance;   /* CO */
    const float *factor, *offset;             /* CO: batch norm outside training, factor × value + offset */
    element *convolved;                       /* images × OUT × OUT × CO: after ReLU where that comes first */
    element *output;                          /* images × POOLED × POOLED × CO */
    float *statistics;                        /* 2 × CO: mean and 1/deviation of the batch */
    int32_t *argmax;                          /* like the output: which element of its square a max-pool took */
    const element *grad_output;               /* like the output */
    element *grad_input;                      /* like the input; null where nobody asks for it */
    float *grad_weight, *grad_gamma, *grad_beta;
    uint64_t dropout_seed;
    uint32_t dropout_limit;                   /* so many of 65,536 elements are dropped */
    float dropout_scale;                      /* what the others are multiplied by */
    float momentum, epsilon;                  /* of batch norm */
    int images, threads;
};

struct depthwise_arguments {
    const element *input;                     /* images × SIDE × SIDE × CHANNELS */
    const float *weight;                      /* KERNEL × KERNEL × CHANNELS */
    element *output;                          /* images × OUT × OUT × CHANNELS */
    const element *grad_output;               /* like the output */
    element *grad_input;                      /* like the input; null where nobody asks for it */
    float *grad_weight;                       /* like the weight */
    int images, threads;
};
