/* Work in parts on the threads of XLA's own pool, by the part of XLA's foreign function interface that lends it. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "xla/ffi/api/c_api.h"

typedef struct {
  void (*part)(void *context, int number);
  void *context; /* not looked at any more once all parts are done: it may be gone */
  int count, finished;
  atomic_int next, users;
  pthread_mutex_t lock; /* guards `finished` */
  pthread_cond_t all;
} Work;

/* Whoever is the last frees it: a thread that the pool sends too late finds nothing to do, when the others are gone. */
static void leave(Work *work) {
  if (atomic_fetch_sub(&work->users, 1) > 1) return;
  pthread_mutex_destroy(&work->lock);
  pthread_cond_destroy(&work->all);
  free(work);
}

static void do_what_is_left(Work *work) {
  for (int number; (number = atomic_fetch_add(&work->next, 1)) < work->count;) {
    work->part(work->context, number);
    pthread_mutex_lock(&work->lock);
    if (++work->finished == work->count) pthread_cond_signal(&work->all);
    pthread_mutex_unlock(&work->lock);
  }
}

static void help(void *work) {
  do_what_is_left(work);
  leave(work);
}

static int threads_of_pool(const XLA_FFI_CallFrame *frame) {
  int64_t threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args asked = {XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, NULL, frame->ctx, &threads};
  XLA_FFI_Error *error = frame->api->XLA_FFI_ThreadPool_NumThreads(&asked);
  if (!error) return threads > 0 ? (int)threads : 1;
  XLA_FFI_Error_Destroy_Args it = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, error};
  frame->api->XLA_FFI_Error_Destroy(&it);
  return 1;
}

/* Call part(context, 0 … count - 1), each once, at the same time as far as the pool has threads to spare; 0 without memory.
 *
 * The calling thread takes parts itself and waits for none that has not begun. So no pool can be too small or too busy.
 */
static int do_in_parts(const XLA_FFI_CallFrame *frame, int threads, int count, void (*part)(void *, int), void *context) {
  Work *work = malloc(sizeof *work);
  if (!work) return 0;
  *work = (Work){.part = part, .context = context, .count = count};
  atomic_init(&work->next, 0);
  atomic_init(&work->users, 1);
  pthread_mutex_init(&work->lock, NULL);
  pthread_cond_init(&work->all, NULL);
  for (int helpers = (count < threads ? count : threads) - 1; helpers > 0; --helpers) {
    XLA_FFI_ThreadPool_Schedule_Args task = {XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, NULL, frame->ctx, help, work};
    atomic_fetch_add(&work->users, 1);
    XLA_FFI_Error *error = frame->api->XLA_FFI_ThreadPool_Schedule(&task);
    if (!error) continue;
    XLA_FFI_Error_Destroy_Args it = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, error};
    frame->api->XLA_FFI_Error_Destroy(&it);
    atomic_fetch_sub(&work->users, 1);
    break;
  }
  do_what_is_left(work);
  pthread_mutex_lock(&work->lock);
  while (work->finished < work->count) pthread_cond_wait(&work->all, &work->lock);
  pthread_mutex_unlock(&work->lock);
  leave(work);
  return 1;
}
