/* What oneDNN has compiled for a convolution's shape, kept for the life of the process, and how one thread executes it. */
#include <immintrin.h>
#include <string.h>

#include "onednn_interface.h"
#include "onednn_work.h"

/* What oneDNN compiles a convolution for. */
typedef enum { OUTPUT, INPUT_GRADIENT, WEIGHT_GRADIENT, EVALUATED, EVALUATED_SUM } Kind;
enum { GROUPS = 6, RELU = 7, RESIDUAL = 8, NUMBERS = 9, BEFORE = 7, BEHIND = 8 }; /* in a window; the last two of training */
enum { BLOCK = 2, PROJECTED = 3 }; /* before a convolution of training: a block's end, with a projection's norm */
typedef struct {
  int64_t kind, image[4], kernel[4], output[4], window[NUMBERS];
} Shape;

/* Kernels are laid out anew in slices of as many output channels (or groups), or more, and in this many at most. */
enum { SLICE_CHANNELS = 64, MOST_SLICES = 16 };
typedef struct {
  void *reorder, *from, *to; /* a primitive, descriptions of memory */
} Slice;

/* Positions of a map in one product of matrices. With thousands some shapes take two and a half times as long. */
enum { POSITIONS = 1024 };

/* One that is compiled. It has no `slices` where the kernel is laid out as oneDNN wants it (or leaves its gradient). */
typedef struct Compiled {
  Shape shape;
  int status; /* not SUCCESS: oneDNN has refused it, and nothing else here counts */
  int by_products; /* see `multiply`; there is no primitive */
  int in_place; /* of EVALUATED_SUM: it adds to what is there where the output goes, else to a copy of that */
  int slices;
  Slice slice[MOST_SLICES];
  void *primitive;
  void *image, *output, *kernel;        /* descriptions of memory */
  void *channels;                       /* the same, of scale and shift; NULL where there are none */
  const void *laid_out, *scratch;       /* the same; oneDNN's own */
  size_t laid_out_size, scratch_size;   /* bytes */
  struct Compiled *next;
} Compiled;

static void *engine, *caller_scratch; /* the latter: attributes that ask for scratch memory of the caller's */
static Compiled *compiled[1024];
static pthread_mutex_t compiling = PTHREAD_MUTEX_INITIALIZER;

#define TRY(call)                \
  do {                           \
    const int status_ = call;    \
    if (status_) return status_; \
  } while (0)

/* The kernel [h,w,I,O] in oneDNN's order of dimensions, ([groups,] O, I, h, w). */
static int describe_kernel(const Shape *s, Dims dims, Dims strides) {
  const int64_t groups = s->window[GROUPS], in = s->kernel[2], out = s->kernel[3];
  const int64_t size[] = {groups, out / groups, in, s->kernel[0], s->kernel[1]};
  const int64_t step[] = {out / groups, 1, out, s->kernel[1] * in * out, in * out};
  const int skip = groups == 1;
  memcpy(dims, size + skip, (5 - skip) * sizeof *size);
  memcpy(strides, step + skip, (5 - skip) * sizeof *step);
  return 5 - skip;
}

static int describe_rows(const int64_t *rows, void **description) {
  const Dims dims = {rows[0], rows[3], rows[1], rows[2]};
  const Dims strides = {rows[1] * rows[2] * rows[3], 1, rows[2] * rows[3], rows[3]};
  return dnnl.memory_desc_create_with_strides(description, 4, dims, FLOAT32, strides);
}

/* What a ReLU multiplies negative values by. With 0 oneDNN takes the larger one of a value and 0, which makes a 0 of what is
 * no number, and so hides that a network has diverged. This is 0 to a processor that takes numbers as small as that for
 * 0, as it is told to while it computes, but not while oneDNN asks whether it is. */
static const float ALMOST_NOTHING = 1e-45f;
enum { TINY_ARE_ZERO = 0x8040 }; /* of MXCSR: results and operands */

/* What is done to each output before it is written: · scale, + shift, + addend, ReLU. */
static int make_attributes(Compiled *c, void **attributes) {
  void *steps;
  TRY(dnnl.post_ops_create(&steps));
  TRY(dnnl.post_ops_append_binary(steps, MULTIPLY, c->channels));
  TRY(dnnl.post_ops_append_binary(steps, ADD, c->channels));
  if (c->in_place)
    TRY(dnnl.post_ops_append_sum(steps, 1, 0, FLOAT32));
  else if (c->shape.kind == EVALUATED_SUM)
    TRY(dnnl.post_ops_append_binary(steps, ADD, c->output));
  if (c->shape.window[RELU]) TRY(dnnl.post_ops_append_eltwise(steps, RECTIFY, ALMOST_NOTHING, 0));
  TRY(dnnl.primitive_attr_create(attributes));
  TRY(dnnl.primitive_attr_set_scratchpad_mode(*attributes, USER_SCRATCHPAD));
  return dnnl.primitive_attr_set_post_ops(*attributes, steps);
}

static int describe_forward(Compiled *c, const void *kernel, void **forward) {
  const int64_t *w = c->shape.window;
  const Dims strides = {w[0], w[1]}, undilated = {0, 0}, before = {w[2], w[4]}, after = {w[3], w[5]};
  void *attributes = caller_scratch;
  if (c->shape.kind >= EVALUATED) TRY(make_attributes(c, &attributes));
  return dnnl.convolution_forward_primitive_desc_create(forward, engine, FORWARD_TRAINING, DIRECT, c->image, kernel, NULL,
                                                        c->output, strides, undilated, before, after, attributes);
}

/* The description of what `c` computes, all memory's but the kernel's as it comes. */
static int describe(Compiled *c, const void *kernel, void **description) {
  const int64_t *w = c->shape.window, channels = c->shape.kernel[3];
  const Dims strides = {w[0], w[1]}, undilated = {0, 0}, before = {w[2], w[4]}, after = {w[3], w[5]};
  const Dims each = {1, channels, 1, 1}, steps = {channels, 1, 1, 1};
  void *forward;
  TRY(describe_rows(c->shape.image, &c->image));
  TRY(describe_rows(c->shape.output, &c->output));
  if (c->shape.kind >= EVALUATED) TRY(dnnl.memory_desc_create_with_strides(&c->channels, 4, each, FLOAT32, steps));
  c->in_place = c->shape.kind == EVALUATED_SUM;
  int status = describe_forward(c, kernel, &forward);
  if (status && c->in_place) {
    c->in_place = 0; /* some of oneDNN's ways do not know it: with groups, and on processors without AVX-512 */
    status = describe_forward(c, kernel, &forward);
  }
  TRY(status);
  if (c->shape.kind == INPUT_GRADIENT)
    return dnnl.convolution_backward_data_primitive_desc_create(description, engine, DIRECT, c->image, kernel, c->output,
                                                                strides, undilated, before, after, forward,
                                                                caller_scratch);
  if (c->shape.kind == WEIGHT_GRADIENT)
    return dnnl.convolution_backward_weights_primitive_desc_create(description, engine, DIRECT, c->image, kernel, NULL,
                                                                   c->output, strides, undilated, before, after,
                                                                   forward, caller_scratch);
  *description = forward;
  return SUCCESS;
}

static int add_slice(Compiled *c, const Dims size, const Dims offset) {
  void *kernel, *laid_out, *description;
  TRY(dnnl.memory_desc_create_submemory(&kernel, c->kernel, size, offset));
  TRY(dnnl.memory_desc_create_submemory(&laid_out, c->laid_out, size, offset));
  const int gradient = c->shape.kind == WEIGHT_GRADIENT;
  Slice *slice = &c->slice[c->slices];
  slice->from = gradient ? laid_out : kernel;
  slice->to = gradient ? kernel : laid_out;
  TRY(dnnl.reorder_primitive_desc_create(&description, slice->from, engine, slice->to, engine, NULL));
  TRY(dnnl.primitive_create(&slice->reorder, description));
  ++c->slices;
  return SUCCESS;
}

/* What lays the kernel out anew (of a gradient, back), in slices that threads can share. */
static int slice_kernel(Compiled *c, const Dims dims) {
  const int64_t units = (dims[0] + SLICE_CHANNELS - 1) / SLICE_CHANNELS;
  const int64_t each = (units + MOST_SLICES - 1) / MOST_SLICES * SLICE_CHANNELS;
  Dims size, offset = {0};
  memcpy(size, dims, sizeof size);
  for (; offset[0] < dims[0]; offset[0] += each) {
    size[0] = each < dims[0] - offset[0] ? each : dims[0] - offset[0];
    if (!add_slice(c, size, offset)) continue;
    /* oneDNN's blocks of channels are none that the slices are made of. */
    c->slices = 0;
    return add_slice(c, dims, (Dims){0});
  }
  return SUCCESS;
}

static int is_pointwise(const Shape *s) {
  const int64_t *w = s->window;
  return s->kernel[0] == 1 && s->kernel[1] == 1 && w[GROUPS] == 1 && !w[2] && !w[3] && !w[4] && !w[5];
}

static int is_strided(const Shape *s) { return s->window[0] > 1 || s->window[1] > 1; }

/* What oneDNN makes for it stays for the life of the process: a network has some dozens of shapes. */
static int compile(Compiled *c) {
  Dims dims = {0}, steps;
  void *any, *description;
  const int rank = describe_kernel(&c->shape, dims, steps), gradient = c->shape.kind == WEIGHT_GRADIENT;
  TRY(dnnl.memory_desc_create_with_strides(&c->kernel, rank, dims, FLOAT32, steps));
  TRY(dnnl.memory_desc_create_with_tag(&any, rank, dims, FLOAT32, ANY_LAYOUT));
  if (gradient && is_pointwise(&c->shape)) {
    c->by_products = 1;
    c->laid_out = c->kernel;
    c->laid_out_size = dnnl.memory_desc_get_size(c->kernel);
    c->scratch_size = is_strided(&c->shape) ? POSITIONS * c->shape.image[3] * sizeof(float) : 0;
    return SUCCESS;
  }
  TRY(describe(c, any, &description));
  c->laid_out = dnnl.primitive_desc_query_md(description, gradient ? QUERY_DIFF_WEIGHTS : QUERY_WEIGHTS, 0);
  c->laid_out_size = dnnl.memory_desc_get_size(c->laid_out);
  c->scratch = dnnl.primitive_desc_query_md(description, QUERY_SCRATCHPAD, 0);
  c->scratch_size = c->scratch ? dnnl.memory_desc_get_size(c->scratch) : 0;
  TRY(dnnl.primitive_create(&c->primitive, description));
  return dnnl.memory_desc_equal(c->kernel, c->laid_out) ? SUCCESS : slice_kernel(c, dims);
}

/* FNV-1a. */
static uint32_t hash_of(const void *memory, size_t size) {
  const unsigned char *bytes = memory;
  uint32_t hash = 2166136261u;
  for (size_t i = 0; i < size; ++i) hash = (hash ^ bytes[i]) * 16777619u;
  return hash;
}

static int find(const Shape *shape, const Compiled **found) {
  Compiled **first = &compiled[hash_of(shape, sizeof *shape) % (sizeof compiled / sizeof *compiled)], *c;
  pthread_mutex_lock(&compiling);
  for (c = *first; c && memcmp(&c->shape, shape, sizeof *shape); c = c->next) continue;
  if (!c && (c = calloc(1, sizeof *c))) {
    c->shape = *shape;
    const unsigned control = _mm_getcsr();
    _mm_setcsr(control & ~TINY_ARE_ZERO);
    c->status = compile(c);
    _mm_setcsr(control);
    c->next = *first;
    *first = c;
  }
  pthread_mutex_unlock(&compiling);
  *found = c;
  return c ? c->status : OUT_OF_MEMORY;
}

/* What a thread keeps until it ends: a stream, and memory for scratch, for kernels that are laid out anew, for copies of
 * addends, for a piece's gradient by the kernel, for sums and for what lies between two convolutions, of its own, of all
 * threads and of all threads between two runs of convolutions, as large as was ever asked for. */
enum { SCRATCH, LAID_OUT, ADDEND, GRADIENT, SUMS, BETWEEN, SHARED = BETWEEN + 3, PASSED = SHARED + 2, MEMORIES = PASSED + 2 };
typedef struct {
  void *stream, *memory[MEMORIES];
  size_t size[MEMORIES];
} Own;
static pthread_key_t own_key;

static void free_own(void *of_a_thread) {
  Own *own = of_a_thread;
  if (own->stream) dnnl.stream_destroy(own->stream);
  for (int which = 0; which < MEMORIES; ++which) free(own->memory[which]);
  free(own);
}

static Own *get_own(void) {
  Own *own = pthread_getspecific(own_key);
  if (own || !(own = calloc(1, sizeof *own))) return own;
  if (!dnnl.stream_create(&own->stream, engine, IN_ORDER) && !pthread_setspecific(own_key, own)) return own;
  free_own(own);
  return NULL;
}

static void *own_memory(int which, size_t size) {
  Own *own = get_own();
  if (!own) return NULL;
  if (own->size[which] < size) {
    free(own->memory[which]);
    own->size[which] = 0;
    if (posix_memalign(&own->memory[which], 64, size)) return own->memory[which] = NULL;
    own->size[which] = size;
  }
  return own->memory[which];
}

enum { MOST_ARGUMENTS = 7 };

static int execute(const void *primitive, int count, const int *names, const void *const *descriptions,
                   void *const *memory) {
  const Own *own = get_own();
  Argument arguments[MOST_ARGUMENTS];
  int status = own ? SUCCESS : OUT_OF_MEMORY, made = 0;
  for (; made < count && !status; made += !status) {
    arguments[made].name = names[made];
    status = dnnl.memory_create(&arguments[made].memory, descriptions[made], engine, memory[made]);
  }
  if (!status) status = dnnl.primitive_execute(primitive, own->stream, count, arguments);
  if (!status) status = dnnl.stream_wait(own->stream);
  while (made) dnnl.memory_destroy(arguments[--made].memory);
  return status;
}

static int reorder(const Slice *slice, void *from, void *to) {
  static const int names[] = {FROM, TO};
  const void *const descriptions[] = {slice->from, slice->to};
  void *const memory[] = {from, to};
  return execute(slice->reorder, 2, names, descriptions, memory);
}

/* Those pixels of `image` that positions of the output from `first` on see. */
static void gather(const Shape *s, const float *image, int64_t first, int64_t count, float *pixels) {
  const int64_t high = s->output[1], wide = s->output[2], channels = s->image[3];
  for (int64_t at = first; at < first + count; ++at, pixels += channels) {
    const int64_t y = at / wide % high * s->window[0], x = at % wide * s->window[1];
    const int64_t pixel = (at / wide / high * s->image[1] + y) * s->image[2] + x;
    memcpy(pixels, image + pixel * channels, channels * sizeof *pixels);
  }
}

/* The gradient of a 1×1 kernel, or (`add`) more of it, as products of matrices, image's transpose · output's gradient: for
 * those of ResNet-50 at 224 px 360 to 490 GFLOP/s on two cores, where oneDNN's convolution gives 130 to 440. */
static int multiply(const Compiled *c, const float *image, float *kernel, const float *output, int add) {
  const int64_t *rows = c->shape.output, in = c->shape.image[3], out = rows[3], all = rows[0] * rows[1] * rows[2];
  float *const pixels = is_strided(&c->shape) ? own_memory(SCRATCH, c->scratch_size) : NULL;
  if (is_strided(&c->shape) && !pixels) return OUT_OF_MEMORY;
  for (int64_t first = 0; first < all; first += POSITIONS) {
    const int64_t count = all - first < POSITIONS ? all - first : POSITIONS;
    if (pixels) gather(&c->shape, image, first, count, pixels);
    TRY(dnnl.sgemm('T', 'N', in, out, count, 1, pixels ? pixels : image + first * in, in, output + first * out, out,
                   first || add ? 1 : 0, kernel, out));
  }
  return SUCCESS;
}
