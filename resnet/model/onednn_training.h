/* A convolution of training together with the batch norms before and behind it.
 *
 * XLA goes over all of a map once more for each: for its mean and variance, to normalise and rectify it, and for the two
 * sums and the result of a norm's gradient. Here a few images at a time are normalised, multiplied and summed up while
 * the cache holds them. What lies between a norm and a convolution is never written to memory, and on the way back it is
 * computed again. But where a block ends between them (onednn_chain.py) it is, for the next block adds it to its own.
 */
#pragma once
#include "onednn_taps.h"

/* Bytes: of image and output, on each thread, of what is worked on at once, or one image of more; and of results that no
 * cache holds until they are read. A convolution is a third slower where it writes such a result than where it writes
 * into memory in the cache; copied from there past the caches they cost a tenth. */
enum { PIECE = 1 << 21, LARGE_RESULT = 48 << 20 };

typedef struct {
  Shape shape;
  Call forward, by_image, by_kernel; /* of one link each, or of none where it is not wanted; their parts are pieces */
  Norm before, behind, projected; /* the last one of `addend`, forth */
  float epsilon;
  const float *image, *output, *gradient; /* [N,H,W,I], [N,H',W',O] and the gradient by that or by what its norm gives */
  const float *rectified;  /* what a ReLU behind it all made of the output, and `gradient` is by that; or NULL */
  const float *addend;     /* added to the gradient by the image or, forth, to what the norm before gives; or NULL */
  const float *source;     /* back, where a block ends before, what its norm took in; or NULL */
  float *closed;           /* forth, what that block gives, of which the output is the convolution; or NULL */
  int closed_past;         /* whether it goes past the caches */
  float *result, *found;   /* output, or gradient by the image; [2,C], statistics of the output or the norm's sums */
  float *by_norm, *by_scale, *by_bias; /* the gradients by what the norm behind gives, of `rectified`, and by its scale and
                                        * bias; or NULL */
  int parts, pieces, past; /* pieces in all; whether results go past the caches */
  float *forth, *added, *back; /* [3,I], [3,I] and [4,O], the coefficients of the norms, or NULL */
  float *sums;             /* [2,O], where those of the norm behind are not given; or NULL */
  double *totals;          /* [parts,2,C], of what becomes `found` or `sums` */
} Training;

/* Add [2,C] to the part's totals. */
static void keep(const float *sums, int64_t channels, double *totals) {
  for (int64_t c = 0; c < 2 * channels; ++c) totals[c] += sums[c];
}

/* The gradient by the kernel of a piece, added to the part's; of the first one it is all. */
static int add_gradient(const Training *t, const Compiled *c, int part, int first, char *image, char *output) {
  const Link *link = t->by_kernel.link;
  char *total = link->kernel + part * link->kernel_step;
  if (c->by_products) return multiply(c, (float *)image, (float *)total, (float *)output, !first);
  Link piece = {.kernel = first ? total : own_memory(GRADIENT, c->laid_out_size)};
  if (!piece.kernel) return OUT_OF_MEMORY;
  TRY(do_link(&piece, c, 0, image, output, NULL));
  if (first) return SUCCESS;
  add((const float *)piece.kernel, c->laid_out_size / sizeof(float), (float *)total);
  return SUCCESS;
}

/* What lies between a norm and a convolution: of so many rows of a map, in this thread's memory `which`. */
static float *between(int which, const int64_t *map) {
  return own_memory(BETWEEN + which, rows_of(map) * map[3] * sizeof(float));
}

static int64_t size_of(const int64_t *map) { return map[1] * map[2] * map[3]; }

/* What the convolution takes of the images from `at` on, as many as `map` has: those, or what `forth` makes of them, at z. */
static const float *take_in(const Training *t, const int64_t *map, int64_t at, float *z) {
  const float *const x = t->image + at * size_of(map);
  if (!t->forth) return x;
  if (t->closed)
    end_block(x, t->addend + at * size_of(map), rows_of(map), map[3], t->forth, t->added, z);
  else
    normalise(x, rows_of(map), map[3], t->forth, z);
  return z;
}

/* The gradient by the convolution's output of as many, or what `back` makes of that by what the norm gives, at d. */
static const float *descend_to(const Training *t, const int64_t *map, int64_t at, float *d) {
  const float *const g = t->gradient + at * size_of(map);
  if (!t->back) return g;
  descend(g, t->output + at * size_of(map), rows_of(map), map[3], t->back, d);
  return d;
}

static void find_moments(const float *y, const int64_t *map, float *sums, double *totals) {
  sum_up(y, rows_of(map), map[3], sums);
  keep_moments(sums, y, rows_of(map), map[3], totals);
}

/* What there is to do with the gradient by the image once it is there, of which z was computed. */
static void finish(const Training *t, const int64_t *map, int64_t at, const float *z, float *by_x, float *sums,
                   double *totals) {
  const float *const x = (t->source ? t->source : t->image) + at * size_of(map);
  if (t->addend) add(t->addend + at * size_of(map), map[0] * size_of(map), by_x);
  if (!sums) return;
  rectify_and_sum_up(by_x, z, x, rows_of(map), map[3], by_x, sums);
  keep(sums, map[3], totals);
}

/* The convolution of a piece, which begins with the image `at`. */
static int do_forward(const Training *t, const Compiled *c, int64_t at, float *sums, double *totals) {
  const Shape *s = &c->shape;
  float *const y = t->result + at * size_of(s->output);
  float *const closed = t->closed ? t->closed + at * size_of(s->image) : NULL;
  float *const z = !t->forth || (closed && !t->closed_past) ? closed : between(0, s->image);
  float *const near = t->past ? between(1, s->output) : y;
  if ((t->forth && !z) || !near) return OUT_OF_MEMORY;
  const float *const x = take_in(t, s->image, at, z);
  TRY(do_link(t->forward.link, c, 0, (char *)x, (char *)near, NULL));
  if (sums) find_moments(near, s->output, sums, totals);
  if (t->past) store(near, s->output[0] * size_of(s->output), y);
  if (closed && t->closed_past) store(x, s->image[0] * size_of(s->image), closed);
  return SUCCESS;
}

/* Its gradients; `first`: none has been added to this part's gradient by the kernel. */
static int do_backward(const Training *t, const Compiled *by_kernel, const Compiled *by_image, int part, int first,
                       int64_t at, float *sums, double *totals) {
  const Shape *s = &by_kernel->shape;
  float *const normalised = t->forth ? between(0, s->image) : NULL;
  float *const descended = t->back ? between(1, s->output) : NULL;
  if ((t->forth && !normalised) || (t->back && !descended)) return OUT_OF_MEMORY;
  const float *const z = take_in(t, s->image, at, normalised), *const d = descend_to(t, s->output, at, descended);
  TRY(add_gradient(t, by_kernel, part, first, (char *)z, (char *)d));
  if (!by_image) return SUCCESS;
  float *const by_x = t->result + at * size_of(s->image);
  float *const near = t->past ? between(2, s->image) : by_x;
  if (!near) return OUT_OF_MEMORY;
  TRY(do_link(t->by_image.link, by_image, 0, (char *)near, (char *)d, NULL));
  finish(t, s->image, at, z, near, sums, totals);
  if (t->past) store(near, s->image[0] * size_of(s->image), by_x);
  return SUCCESS;
}

static int64_t channels_found(const Training *t) { return t->forward.links ? t->shape.output[3] : t->shape.image[3]; }

static const Compiled *compiled_for(const Call *call, int last) {
  return !call->links ? NULL : last ? call->link->last : call->link->part;
}

static int64_t first_piece(const Training *t, int part) { return (int64_t)part * t->pieces / t->parts; }

static int do_pieces(Training *t, int part) {
  const int64_t first = first_piece(t, part), end = first_piece(t, part + 1);
  const int64_t channels = channels_found(t), size = 2 * channels * sizeof(float);
  const Call *const all = t->forward.links ? &t->forward : &t->by_kernel;
  double *const totals = t->totals + part * 2 * channels;
  float *const sums = t->found ? own_memory(SUMS, size) : NULL;
  if (t->found && !sums) return OUT_OF_MEMORY;
  for (int64_t piece = first; piece < end; ++piece) {
    const int last = piece == t->pieces - 1;
    const int64_t at = piece * all->link->part->shape.image[0];
    if (sums) memset(sums, 0, size);
    if (t->forward.links)
      TRY(do_forward(t, compiled_for(&t->forward, last), at, sums, totals));
    else
      TRY(do_backward(t, compiled_for(&t->by_kernel, last), compiled_for(&t->by_image, last), part, piece == first, at,
                      sums, totals));
  }
  return SUCCESS;
}

/* Of as many images as `map` has: the gradient by what the norm behind gives, where a ReLU is behind that, and the sums that
 * its slopes are made of. */
static void begin_images(Training *t, const int64_t *map, int64_t image, float *sums, double *totals) {
  const int64_t at = image * size_of(map), rows = rows_of(map), channels = map[3];
  memset(sums, 0, 2 * channels * sizeof *sums);
  if (t->rectified)
    rectify_and_sum_up(t->gradient + at, t->rectified + at, t->output + at, rows, channels, t->by_norm + at, sums);
  else
    sum_products_up(t->gradient + at, t->output + at, rows, channels, sums);
  keep(sums, channels, totals);
}

static int begin_pieces(Training *t, int part) {
  const Link *all = t->by_kernel.link;
  const int64_t channels = t->shape.output[3];
  float *const sums = own_memory(SUMS, 2 * channels * sizeof(float));
  if (!sums) return OUT_OF_MEMORY;
  for (int64_t piece = first_piece(t, part); piece < first_piece(t, part + 1); ++piece)
    begin_images(t, (piece == t->pieces - 1 ? all->last : all->part)->shape.output, piece * all->part->shape.image[0],
                 sums, t->totals + part * 2 * channels);
  return SUCCESS;
}

static void begin_part(void *context, int part) {
  Training *t = context;
  note(&t->by_kernel, begin_pieces(t, part));
}

static void do_training_part(void *context, int part) {
  Training *t = context;
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  note(&t->by_kernel, do_pieces(t, part));
  omp_set_num_threads(threads);
}

/* Find what is compiled for the pieces of all calls, which are as many in each. */
static int cut_into_pieces(Training *t, int64_t most) {
  Call *const calls[] = {&t->forward, &t->by_image, &t->by_kernel};
  static const Kind kinds[] = {OUTPUT, INPUT_GRADIENT, WEIGHT_GRADIENT};
  for (int alike = 0; !alike;) {
    alike = 1;
    for (int i = 0; i < 3; ++i) {
      Shape shape = t->shape;
      shape.kind = kinds[i];
      if (!calls[i]->links) continue;
      TRY(cut(&shape, most, calls[i]));
      t->pieces = calls[i]->parts;
      alike &= are_alike(calls[i]);
    }
    /* As for `cut_alike`; of equal pieces all are alike. */
    while (!alike && t->shape.image[0] % most) --most;
  }
  return SUCCESS;
}

static int cut_training(Training *t, int threads) {
  const int64_t images = t->shape.image[0], share = (images + threads - 1) / threads;
  const int64_t each = (size_of(t->shape.image) + size_of(t->shape.output)) * sizeof(float);
  const int64_t fit = each < PIECE ? PIECE / each : 1, most = (share + fit - 1) / fit * threads;
  TRY(cut_into_pieces(t, most < images ? most : images));
  t->parts = threads < t->pieces ? threads : t->pieces;
  if (!t->by_kernel.links) return SUCCESS;
  const Compiled *c = t->by_kernel.link->part;
  const int64_t fit_parts = MOST_MEMORY / (int64_t)(c->laid_out_size + c->scratch_size);
  if (fit_parts < t->parts) t->parts = fit_parts > 1 ? (int)fit_parts : 1;
  t->by_kernel.parts = t->parts;
  t->by_kernel.sums = threads;
  return SUCCESS;
}

/* Memory of the calling thread's for kernels, gradients of each part, coefficients and totals. */
static int lend_training_memory(Training *t) {
  Call *const kernel = t->forward.links ? &t->forward : t->by_image.links ? &t->by_image : NULL;
  Link *const gradient = t->by_kernel.links ? t->by_kernel.link : NULL;
  const int few = is_few(&t->shape), laid_out = kernel && !few && kernel->link->part->slices;
  const int apart = gradient && !few && (gradient->part->slices || t->parts > 1);
  const size_t kernel_size = laid_out ? aligned(kernel->link->part->laid_out_size) : 0;
  const size_t gradient_size = apart ? aligned(gradient->part->laid_out_size) : 0;
  const size_t forth_size = t->before.statistics ? aligned(3 * t->shape.image[3] * sizeof(float)) : 0;
  const size_t added_size = t->projected.statistics ? forth_size : 0;
  const size_t back_size = t->behind.statistics ? aligned(4 * t->shape.output[3] * sizeof(float)) : 0;
  const int64_t in = t->shape.image[3], out = t->shape.output[3];
  const size_t totals_size = t->parts * 2 * (in > out ? in : out) * sizeof(double);
  const size_t sums_size = back_size && !t->behind.sums ? aligned(2 * out * sizeof(float)) : 0;
  const size_t coefficients_size = forth_size + added_size + back_size + sums_size;
  char *memory = own_memory(LAID_OUT, kernel_size + t->parts * gradient_size + coefficients_size + totals_size + 64);
  if (!memory) return OUT_OF_MEMORY;
  if (kernel) kernel->link->kernel = laid_out ? memory : kernel->link->plain;
  memory += kernel_size;
  if (gradient) gradient->kernel = apart ? memory : gradient->plain;
  if (gradient) gradient->kernel_step = gradient_size;
  memory += t->parts * gradient_size;
  t->forth = forth_size ? (float *)memory : NULL;
  memory += forth_size;
  t->added = added_size ? (float *)memory : NULL;
  memory += added_size;
  t->back = back_size ? (float *)memory : NULL;
  memory += back_size;
  t->sums = sums_size ? (float *)memory : NULL;
  memory += sums_size;
  t->totals = memset(memory, 0, totals_size);
  return SUCCESS;
}

/* Of the parts' totals what they are in all, [2,C]; of `count` values a channel, if not 0, means and biased variances. */
static void find_totals(const double *totals, int parts, int64_t channels, int64_t count, float *found) {
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0, other = 0;
    for (int part = 0; part < parts; ++part) {
      sum += totals[2 * channels * part + c];
      other += totals[2 * channels * part + channels + c];
    }
    const double mean = count ? sum / count : 0, variance = count ? other / count - mean * mean : 0;
    found[c] = (float)(count ? mean : sum);
    found[channels + c] = (float)(!count ? other : variance < 0 ? 0 : variance);
  }
}

static int begin(const XLA_FFI_CallFrame *frame, int threads, void (*begin_part)(void *, int), Training *t) {
  const int64_t channels = t->shape.output[3];
  if (!do_in_parts(frame, threads, t->parts, begin_part, t)) return OUT_OF_MEMORY;
  TRY(atomic_load(&t->by_kernel.status));
  find_totals(t->totals, t->parts, channels, 0, t->sums);
  memset(t->totals, 0, t->parts * 2 * channels * sizeof *t->totals);
  t->behind.sums = t->sums;
  if (t->by_norm) t->gradient = t->by_norm;
  return SUCCESS;
}

/* Memory, and the coefficients of the norms. */
static int prepare(const XLA_FFI_CallFrame *frame, int threads, void (*begin_part)(void *, int), Training *t) {
  TRY(lend_training_memory(t));
  if (t->sums) TRY(begin(frame, threads, begin_part, t));
  if (t->forth) find_coefficients(&t->before, t->epsilon, t->shape.image[3], t->forth);
  if (t->added) find_coefficients(&t->projected, t->epsilon, t->shape.image[3], t->added);
  if (t->back)
    find_slopes(&t->behind, t->epsilon, rows_of(t->shape.output), t->shape.output[3], t->back, t->by_scale, t->by_bias);
  return SUCCESS;
}

/* What is found of all parts' totals. */
static void give_found(Training *t) {
  const int64_t count = t->forward.links ? rows_of(t->shape.output) : 0;
  if (t->found) find_totals(t->totals, t->parts, channels_found(t), count, t->found);
}

/* `t` needs its operands and results; the rest is found here. A status of oneDNN's. */
static int train(const XLA_FFI_CallFrame *frame, Training *t) {
  const int threads = threads_of_pool(frame);
  const int64_t result = size_of(t->forward.links ? t->shape.output : t->shape.image);
  t->past = t->shape.image[0] * result * (int64_t)sizeof(float) >= LARGE_RESULT;
  t->closed_past = t->shape.image[0] * size_of(t->shape.image) * (int64_t)sizeof(float) >= LARGE_RESULT;
  TRY(cut_training(t, threads));
  TRY(prepare(frame, threads, begin_part, t));
  if (t->forward.links) TRY(lay_all_out(frame, threads, &t->forward));
  if (t->by_image.links) TRY(lay_all_out(frame, threads, &t->by_image));
  if (!do_in_parts(frame, threads, t->parts, do_training_part, t)) return OUT_OF_MEMORY;
  TRY(atomic_load(&t->by_kernel.status));
  give_found(t);
  return t->by_kernel.links ? add_all_up(frame, threads, &t->by_kernel) : SUCCESS;
}
