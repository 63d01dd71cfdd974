/* A convolution of training of few outputs (onednn_taps.h), with the norms around it.
 *
 * Threads share the images for what the norms want, then channels for the products, then the images again.
 */
#include "onednn_taps.h"
#include "onednn_training.h"

typedef struct {
  Training *training;
  float *image, *gradient; /* where the convolution finds its image, and the gradient by its output; or NULL: as they are */
} Few;

/* This part's images of a map; the first of them. */
static int64_t take_share(const Training *t, int part, const int64_t *whole, int64_t *map) {
  const int64_t first = part * whole[0] / t->parts;
  memcpy(map, whole, 4 * sizeof *map);
  map[0] = (part + 1) * whole[0] / t->parts - first;
  return first;
}

static float *sums_of_share(Training *t, int64_t channels) {
  float *const sums = own_memory(SUMS, 2 * channels * sizeof(float));
  if (sums)
    memset(sums, 0, 2 * channels * sizeof *sums);
  else
    note(&t->by_kernel, OUT_OF_MEMORY);
  return sums;
}

static void begin_share(void *context, int part) {
  Training *t = context;
  int64_t map[4];
  const int64_t first = take_share(t, part, t->shape.output, map);
  float *const sums = sums_of_share(t, map[3]);
  if (sums) begin_images(t, map, first, sums, t->totals + part * 2 * map[3]);
}

static void enter_share(void *context, int part) {
  const Few *few = context;
  const Training *t = few->training;
  int64_t map[4], first = take_share(t, part, t->shape.image, map);
  if (few->image) take_in(t, map, first, few->image + first * size_of(map));
  first = take_share(t, part, t->shape.output, map);
  if (few->gradient) descend_to(t, map, first, few->gradient + first * size_of(map));
}

static void leave_share(void *context, int part) {
  const Few *few = context;
  Training *t = few->training;
  const int64_t channels = channels_found(t);
  float *const sums = t->found ? sums_of_share(t, channels) : NULL;
  double *const totals = t->totals + part * 2 * channels;
  int64_t map[4];
  if (t->found && !sums) return;
  const int64_t first = take_share(t, part, t->forward.links ? t->shape.output : t->shape.image, map);
  const int64_t at = first * size_of(map);
  if (t->forward.links)
    find_moments(t->result + at, map, sums, totals);
  else
    finish(t, map, first, (few->image ? few->image : t->image) + at, t->result + at, sums, totals);
}

/* `train`, of few outputs. */
static int train_few(const XLA_FFI_CallFrame *frame, Training *t) {
  const int threads = threads_of_pool(frame);
  const Shape *s = &t->shape;
  t->parts = threads < s->image[0] ? threads : (int)s->image[0];
  TRY(prepare(frame, threads, begin_share, t));
  Few few = {.training = t};
  if (t->forth) few.image = t->closed ? t->closed : own_memory(SHARED, s->image[0] * bytes_of(s->image));
  if (t->back) few.gradient = own_memory(SHARED + 1, s->image[0] * bytes_of(s->output));
  if ((t->forth && !few.image) || (t->back && !few.gradient)) return OUT_OF_MEMORY;
  if ((few.image || few.gradient) && !do_in_parts(frame, threads, t->parts, enter_share, &few)) return OUT_OF_MEMORY;
  Products p = {.shape = s, .image = few.image ? few.image : t->image};
  p.gradient = few.gradient ? few.gradient : t->gradient;
  if (t->forward.links) {
    p.kernel = (float *)t->forward.link->plain;
    p.output = t->result;
  } else {
    p.by_kernel = (float *)t->by_kernel.link->plain;
    if (t->by_image.links) p.kernel = (float *)t->by_image.link->plain, p.by_image = t->result;
  }
  TRY(multiply_taps(frame, threads, &p));
  const int left = t->found || (t->by_image.links && t->addend);
  if (left && !do_in_parts(frame, threads, t->parts, leave_share, &few)) return OUT_OF_MEMORY;
  TRY(atomic_load(&t->by_kernel.status));
  give_found(t);
  return SUCCESS;
}
