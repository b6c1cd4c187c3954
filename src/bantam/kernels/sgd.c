/* A step of stochastic gradient descent, with the numbers of torch.optim.SGD: see `sgd.py`. */
#include "numbers.h"
#include "arguments.h"
#include "products.h"

/* Round a product before it is added to something, as PyTorch does. */
static INLINE vector product_of(vector a, float b)
{
    vector product = a * b;
    KEEP(product);
    return product;
}

/* So many numbers of a tensor, LANES at a time. */
static INLINE void move(const struct sgd_arguments *a, float *weight, const float *from, float *momentum)
{
    vector here = load(weight), gradient = load(from), direction;
    if (a->weight_decay != 0)
        gradient += here * a->weight_decay;
    direction = gradient;
    if (momentum) {
        const vector moved = product_of(load(momentum), a->momentum) + gradient;
        store(momentum, moved);
        direction = moved;
        if (a->nesterov)
            direction = gradient + moved * a->momentum;
    }
    store(weight, here - direction * a->lr);
}

void step(const struct sgd_arguments *a)
{
    for (int i = 0; i < a->count; i++) {
        const struct sgd_tensor *t = a->tensors + i;
        const int left = t->count % LANES, whole = t->count - left;
        for (int u = 0; u < whole; u += LANES)
            move(a, t->weight + u, t->gradient + u, t->momentum ? t->momentum + u : NULL);
        if (left) { /* the rest in vectors too, so that it is rounded alike */
            float weight[LANES] = {0}, gradient[LANES] = {0}, momentum[LANES] = {0};
            memcpy(weight, t->weight + whole, sizeof(float) * left);
            memcpy(gradient, t->gradient + whole, sizeof(float) * left);
            if (t->momentum)
                memcpy(momentum, t->momentum + whole, sizeof(float) * left);
            move(a, weight, gradient, t->momentum ? momentum : NULL);
            memcpy(t->weight + whole, weight, sizeof(float) * left);
            if (t->momentum)
                memcpy(t->momentum + whole, momentum, sizeof(float) * left);
        }
    }
}
