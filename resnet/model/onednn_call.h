/* One call of a handler: its batch is cut into parts, and XLA's threads do them, each with oneDNN on that thread alone.
 *
 * With threads of OpenMP's beside XLA's, as oneDNN would have it, whatever stands between two convolutions is slowed by
 * those of the last one spinning on: ResNet-50, 64 px, batch 32 on 2 cores, 300 ms a step; without them 238.
 *
 * Where several convolutions are one call, a part goes through all of them before the next is begun. What lies between
 * them then stays in the cache: evaluation of ResNet-50 with its blocks as such calls, of 16 images on each of 2 cores,
 * 55.5 images/s at 224 px, not 53 (in a program of C), 164 at 128 px, not 156; as fast at 64 px.
 */
#pragma once
#include "onednn_compiled.h"

/* Weight gradients of this many parts at most are added up, whatever the number of threads; and the bytes of memory
 * beside operands and result, of all parts, for which there are fewer parts. */
enum { MOST_SUMMANDS = 16, MOST_MEMORY = 1 << 30 };

/* Bytes. Fewer of a kernel than ALONE one thread lays out sooner than another is awake. An image whose operand and result
 * have LARGE or more goes through several convolutions by itself; smaller ones, for which small parts are too much to
 * begin and to end, as many at once as MOST_AT_ONCE hold. */
enum { ALONE = 1 << 18, LARGE = 1 << 20, MOST_AT_ONCE = 1 << 24 };

enum { MOST_LINKS = 8 };

/* A convolution of a call. */
typedef struct {
  const Compiled *part, *last; /* of each part, and of the last, which may have fewer images */
  char *plain, *kernel; /* the kernel, or its gradient, as XLA has it, and as oneDNN wants it: maybe the same */
  size_t kernel_step;   /* bytes; 0 unless each part has a kernel's gradient */
  size_t ahead;         /* bytes of `plain` where it is a kernel that was laid out before the call; else 0 */
  char *scale, *shift;
} Link;

typedef struct {
  Link link[MOST_LINKS];
  int links, parts, sums; /* the last: pieces that the sum of gradients is cut into */
  char *image, *output, *addend; /* of the first, of the last, and added to the latter */
  size_t image_step, output_step; /* bytes */
  atomic_int status;
} Call;

static void note(Call *call, int status) {
  if (status) atomic_store(&call->status, status);
}

/* What oneDNN is given in one execution. */
typedef struct {
  int count, lacking, names[MOST_ARGUMENTS]; /* lacking: there was no memory for one of them */
  const void *descriptions[MOST_ARGUMENTS];
  void *memory[MOST_ARGUMENTS];
} Operands;

static void give(Operands *operands, int name, const void *description, void *memory) {
  operands->lacking |= !memory;
  operands->names[operands->count] = name;
  operands->descriptions[operands->count] = description;
  operands->memory[operands->count++] = memory;
}

static void *copy_of(const void *addend, size_t size) {
  void *copy = own_memory(ADDEND, size);
  return copy ? memcpy(copy, addend, size) : NULL;
}

static int do_link(const Link *link, const Compiled *c, int number, char *image, char *output, char *addend) {
  static const int names[][3] = {
      [OUTPUT] = {SRC, WEIGHTS, DST},
      [INPUT_GRADIENT] = {DIFF_SRC, WEIGHTS, DIFF_DST},
      [WEIGHT_GRADIENT] = {SRC, DIFF_WEIGHTS, DIFF_DST},
      [EVALUATED] = {SRC, WEIGHTS, DST},
      [EVALUATED_SUM] = {SRC, WEIGHTS, DST},
  };
  const int kind = c->shape.kind;
  char *const kernel = link->kernel + number * link->kernel_step;
  Operands operands = {0};
  if (c->by_products) return multiply(c, (float *)image, (float *)kernel, (float *)output, 0);
  give(&operands, names[kind][0], c->image, image);
  give(&operands, names[kind][1], c->laid_out, kernel);
  give(&operands, names[kind][2], c->output, output);
  if (kind >= EVALUATED) {
    give(&operands, STEP(0), c->channels, link->scale);
    give(&operands, STEP(1), c->channels, link->shift);
  }
  if (kind == EVALUATED_SUM) {
    const size_t size = dnnl.memory_desc_get_size(c->output);
    /* XLA leaves the addend where the output goes, see onednn.py. */
    if (c->in_place && addend != output) memcpy(output, addend, size);
    if (!c->in_place) give(&operands, STEP(2), c->output, addend == output ? copy_of(addend, size) : addend);
  }
  if (c->scratch_size) give(&operands, SCRATCHPAD, c->scratch, own_memory(SCRATCH, c->scratch_size));
  if (operands.lacking) return OUT_OF_MEMORY;
  return execute(c->primitive, operands.count, operands.names, operands.descriptions, operands.memory);
}

static void do_part(void *context, int number) {
  Call *call = context;
  const int threads = omp_get_max_threads();
  int status = SUCCESS;
  char *image = call->image + number * call->image_step;
  const unsigned control = _mm_getcsr();
  omp_set_num_threads(1);
  _mm_setcsr(control | TINY_ARE_ZERO);
  for (int i = 0; i < call->links && !status; ++i) {
    const Link *link = &call->link[i];
    const Compiled *c = number == call->parts - 1 ? link->last : link->part;
    const int last = i == call->links - 1;
    char *output = last ? call->output + number * call->output_step
                        : own_memory(BETWEEN + i % 2, dnnl.memory_desc_get_size(c->output));
    char *addend = c->shape.kind == EVALUATED_SUM ? call->addend + number * call->output_step : NULL;
    status = output ? do_link(link, c, number, image, output, addend) : OUT_OF_MEMORY;
    image = output;
  }
  _mm_setcsr(control);
  omp_set_num_threads(threads);
  note(call, status);
}

/* Lay a slice of a kernel out as oneDNN wants it; of a kernel's gradient, back. `number` counts through all kernels. */
static void lay_out(void *context, int number) {
  Call *call = context;
  const Link *link = call->link;
  for (; number >= link->part->slices; ++link) number -= link->part->slices;
  const int threads = omp_get_max_threads(), gradient = link->part->shape.kind == WEIGHT_GRADIENT;
  omp_set_num_threads(1);
  note(call, reorder(&link->part->slice[number], gradient ? link->kernel : link->plain,
                     gradient ? link->plain : link->kernel));
  omp_set_num_threads(threads);
}

/* Add the parts' weight gradients up, a piece of them, in the order of the parts. */
static void add_up(void *context, int number) {
  const Call *call = context;
  const Link *link = call->link;
  const size_t all = link->part->laid_out_size / sizeof(float), each = (all + call->sums - 1) / call->sums;
  const size_t first = number * each < all ? number * each : all, end = first + each < all ? first + each : all;
  const float *one = (const float *)link->kernel;
  float *total = (float *)(link->part->slices ? link->kernel : link->plain);
  for (int part = 1; part < call->parts; ++part, one = total) {
    const float *more = (const float *)(link->kernel + part * link->kernel_step);
    for (size_t i = first; i < end; ++i) total[i] = one[i] + more[i];
  }
}

/* Cut the batch into `most` parts or fewer, the last of which may be smaller; find what is compiled for both. */
static int cut(const Shape *shapes, int64_t most, Call *call) {
  const int64_t images = shapes->image[0], each = (images + most - 1) / most;
  call->parts = (int)((images + each - 1) / each);
  for (int i = 0; i < call->links; ++i) {
    Shape part = shapes[i], last = shapes[i];
    part.image[0] = part.output[0] = each;
    last.image[0] = last.output[0] = images - (call->parts - 1) * each;
    TRY(find(&part, &call->link[i].part));
    TRY(find(&last, &call->link[i].last));
  }
  return SUCCESS;
}

static int are_alike(const Call *call) {
  for (const Link *link = call->link; link < call->link + call->links; ++link)
    if (!dnnl.memory_desc_equal(link->part->laid_out, link->last->laid_out)) return 0;
  return 1;
}

/* For a smaller part oneDNN may want the kernel laid out otherwise, of which there is but one: then into equal parts. */
static int cut_alike(const Shape *shapes, int64_t most, Call *call) {
  TRY(cut(shapes, most, call));
  if (are_alike(call)) return SUCCESS;
  while (shapes->image[0] % most) --most;
  return cut(shapes, most, call);
}

static int64_t rows_of(const int64_t *map) { return map[0] * map[1] * map[2]; }

static int64_t bytes_of(const int64_t *rows) { return rows[1] * rows[2] * rows[3] * (int64_t)sizeof(float); }

static int64_t parts_wanted(const Shape *shapes, int links, int threads) {
  const int64_t images = shapes->image[0];
  if (shapes->kind == WEIGHT_GRADIENT && threads > MOST_SUMMANDS) threads = MOST_SUMMANDS;
  int64_t wanted = threads;
  if (links > 1) {
    const int64_t each = bytes_of(shapes->image) + bytes_of(shapes[links - 1].output);
    const int64_t fit = each < MOST_AT_ONCE ? MOST_AT_ONCE / each : 1, parts = (images + fit - 1) / fit;
    wanted = each < LARGE ? (parts + threads - 1) / threads * threads : images;
  }
  return wanted < images ? wanted : images;
}

static int cut_up(const Shape *shapes, int threads, Call *call) {
  TRY(cut_alike(shapes, parts_wanted(shapes, call->links, threads), call));
  const int gradient = shapes->kind == WEIGHT_GRADIENT;
  size_t memory = 0;
  for (int i = 0; i < call->links; ++i) {
    const Compiled *c = call->link[i].part;
    const size_t needed = c->scratch_size + (gradient ? c->laid_out_size : 0);
    if (needed > memory) memory = needed;
  }
  const int64_t fit = memory ? MOST_MEMORY / (int64_t)memory : call->parts, at_once = gradient ? call->parts : threads;
  return fit >= at_once ? SUCCESS : cut_alike(shapes, fit > 1 ? fit : 1, call);
}

static size_t aligned(size_t size) { return (size + 63) / 64 * 64; }

/* Where the kernels that oneDNN wants otherwise are laid out, or the parts' gradients by a kernel. */
static int lend_memory(Call *call, int gradient) {
  size_t size = 0;
  for (int i = 0; i < call->links; ++i) {
    const Compiled *c = call->link[i].part;
    if (gradient) call->link[i].kernel_step = aligned(c->laid_out_size);
    if (gradient && (c->slices || call->parts > 1)) size += call->parts * aligned(c->laid_out_size);
    if (!gradient && c->slices) size += aligned(c->laid_out_size);
  }
  char *memory = size ? own_memory(LAID_OUT, size) : NULL;
  if (size && !memory) return OUT_OF_MEMORY;
  for (Link *link = call->link; link < call->link + call->links; ++link) {
    link->kernel = link->plain;
    if (!link->part->slices && !(gradient && call->parts > 1)) continue;
    link->kernel = memory;
    memory += aligned(link->part->laid_out_size);
  }
  return SUCCESS;
}

static int lay_all_out(const XLA_FFI_CallFrame *frame, int threads, Call *call) {
  size_t size = 0;
  int slices = 0;
  for (const Link *link = call->link; link < call->link + call->links; ++link) {
    size += link->part->laid_out_size;
    slices += link->part->slices;
  }
  if (!slices) return SUCCESS;
  if (!do_in_parts(frame, size < ALONE ? 1 : threads, slices, lay_out, call)) return OUT_OF_MEMORY;
  return atomic_load(&call->status);
}

/* The parts' gradients by a kernel, to be one as XLA has it. */
static int add_all_up(const XLA_FFI_CallFrame *frame, int threads, Call *call) {
  const Link *link = call->link;
  if (link->kernel == link->plain) return SUCCESS;
  if (call->parts > 1 && !do_in_parts(frame, threads, call->sums, add_up, call)) return OUT_OF_MEMORY;
  return lay_all_out(frame, threads, call);
}

/* In what order a kernel is laid out, [h,w,I,O] and that, hashed. */
static uint32_t layout_of(const Compiled *c) {
  struct {
    int64_t kernel[4], groups, blocks;
    Dims strides, sizes, dimensions;
  } layout;
  const Dims *found;
  int blocks = 0;
  memset(&layout, 0, sizeof layout);
  memcpy(layout.kernel, c->shape.kernel, sizeof layout.kernel);
  layout.groups = c->shape.window[GROUPS];
  const size_t rank = layout.groups == 1 ? 4 : 5;
  if (!dnnl.memory_desc_query(c->laid_out, QUERY_STRIDES, &found)) memcpy(layout.strides, found, rank * sizeof **found);
  dnnl.memory_desc_query(c->laid_out, QUERY_BLOCKS, &blocks);
  layout.blocks = blocks;
  if (!dnnl.memory_desc_query(c->laid_out, QUERY_BLOCK_SIZES, &found))
    memcpy(layout.sizes, found, blocks * sizeof **found);
  if (!dnnl.memory_desc_query(c->laid_out, QUERY_BLOCK_DIMENSIONS, &found))
    memcpy(layout.dimensions, found, blocks * sizeof **found);
  return hash_of(&layout, sizeof layout);
}

/* What a kernel ends with that was laid out before the call. */
typedef struct {
  uint32_t layout, nothing[15];
} Purpose;

static size_t size_ahead(const Compiled *c) { return aligned(c->laid_out_size) + sizeof(Purpose); }

static int is_laid_out(const Link *link) {
  const Purpose purpose = {.layout = layout_of(link->part)};
  return link->ahead == size_ahead(link->part) &&
         !memcmp(link->plain + aligned(link->part->laid_out_size), &purpose, sizeof purpose);
}

/* No status of oneDNN's: kernels are laid out otherwise than these threads want them. */
enum { LAID_OUT_OTHERWISE = -1 };

static int make_kernels_ready(const XLA_FFI_CallFrame *frame, int threads, Call *call) {
  if (!call->link->ahead) {
    TRY(lend_memory(call, 0));
    return lay_all_out(frame, threads, call);
  }
  for (Link *link = call->link; link < call->link + call->links; ++link) {
    if (!is_laid_out(link)) return LAID_OUT_OTHERWISE;
    link->kernel = link->plain;
  }
  return SUCCESS;
}

/* `call` needs its links' operands and its own; the rest is found here. A status of oneDNN's. */
static int convolve(const XLA_FFI_CallFrame *frame, const Shape *shapes, Call *call) {
  const int threads = threads_of_pool(frame), gradient = shapes->kind == WEIGHT_GRADIENT;
  TRY(cut_up(shapes, threads, call));
  const int64_t images = call->link->part->shape.image[0];
  call->image_step = images * bytes_of(shapes->image);
  call->output_step = images * bytes_of(shapes[call->links - 1].output);
  call->sums = threads;
  TRY(gradient ? lend_memory(call, gradient) : make_kernels_ready(frame, threads, call));
  if (!do_in_parts(frame, threads, call->parts, do_part, call)) return OUT_OF_MEMORY;
  TRY(atomic_load(&call->status));
  return gradient ? add_all_up(frame, threads, call) : SUCCESS;
}
