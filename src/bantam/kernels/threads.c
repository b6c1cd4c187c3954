/* What code compiled with -fopenmp calls, by threads of its own: for processes where neither PyTorch nor anything else
 * brings the OpenMP of this compiler. gcc and clang call different functions, so both are here.
 *
 * Threads begin with a parallel region and end with it. Loops are shared out in fixed parts and nothing waits within a
 * region, so a thread that the system refuses can be made up for: its part is computed after the others.
 */
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
/* Only the blocks that this is linked to shall find these functions, and they no others. */
#pragma GCC visibility push(hidden)

/* Blocks keep images on the stack: systems give to threads less than that, Apple's half a megabyte. */
enum { STACK = 16 << 20 };

/* This thread's number, of so many in its region. */
static __thread int number, count = 1;

struct thread { pthread_t id; int number, count, begun; void (*run)(void *); void *data; };
static void *begin(void *given)
{
    const struct thread *thread = given;
    number = thread->number;
    count = thread->count;
    thread->run(thread->data);
    return NULL;
}

static void in_threads(void (*run)(void *), void *data, int threads)
{
    struct thread others[threads > 1 ? threads : 1];
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK);
    for (int t = 1; t < threads; t++) {
        others[t] = (struct thread){.number = t, .count = threads, .run = run, .data = data};
        others[t].begun = !pthread_create(&others[t].id, &attributes, begin, &others[t]);
    }
    pthread_attr_destroy(&attributes);
    count = threads > 1 ? threads : 1;
    run(data);
    for (int t = 1; t < threads; t++)
        if (!others[t].begun) {
            number = t;
            run(data);
        }
    for (int t = 1; t < threads; t++)
        if (others[t].begun)
            pthread_join(others[t].id, NULL);
    number = 0;
    count = 1;
}

/* gcc: a loop asks for the number of its thread and computes its part itself. */
int omp_get_num_threads(void) { return count; }
int omp_get_thread_num(void) { return number; }
void GOMP_parallel(void (*run)(void *), void *data, unsigned threads, unsigned flags)
{
    (void)flags;
    in_threads(run, data, (int)threads);
}

/* clang: a region is a function of two pointers to numbers of the thread, and pointers to what it uses. It is called
 * with as many as the longest one has: by the conventions of x86-64 and AArch64 it does not see what is too much. */
enum { MOST = 16 };
typedef void region(int32_t *, int32_t *, void *, void *, void *, void *, void *, void *, void *, void *, void *, void *,
                    void *, void *, void *, void *, void *, void *);
struct call { region *function; void *given[MOST]; };
static __thread int wanted;

static void run_region(void *data)
{
    const struct call *call = data;
    void *const *u = call->given;
    int32_t thread = number, bound = number;
    call->function(&thread, &bound, u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12],
                   u[13], u[14], u[15]);
}

int32_t __kmpc_global_thread_num(void *where)
{
    (void)where;
    return number;
}
void __kmpc_push_num_threads(void *where, int32_t thread, int32_t threads)
{
    (void)where, (void)thread;
    wanted = threads;
}
void __kmpc_fork_call(void *where, int32_t pointers, region *function, ...)
{
    struct call call = {.function = function};
    va_list list;
    (void)where;
    if (pointers > MOST)
        abort();
    va_start(list, function);
    for (int u = 0; u < pointers; u++)
        call.given[u] = va_arg(list, void *);
    va_end(list);
    const int threads = wanted;
    wanted = 0;
    in_threads(run_region, &call, threads);
}

/* The first part of a thread, from *lower to *upper: with `schedule(static, chunk)` the next one is *stride further on,
 * with `schedule(static)` there is one part each, as equal as they can be. */
void __kmpc_for_static_init_4(void *where, int32_t thread, int32_t schedule, int32_t *last, int32_t *lower,
                              int32_t *upper, int32_t *stride, int32_t increment, int32_t chunk)
{
    enum { CHUNKED = 33, EQUAL = 34 };
    const int32_t images = *upper - *lower + 1;
    (void)where, (void)thread, (void)last;
    if (increment != 1 || (schedule != CHUNKED && schedule != EQUAL))
        abort();
    if (schedule == CHUNKED) {
        *lower += number * chunk;
        *upper = *lower + chunk - 1;
        *stride = count * chunk;
    } else {
        const int32_t each = images / count, longer = images % count;
        *lower += number * each + (number < longer ? number : longer);
        *upper = *lower + each - (number < longer ? 0 : 1);
        *stride = images;
    }
}
void __kmpc_for_static_fini(void *where, int32_t thread) { (void)where, (void)thread; }
