/* Convolutions of fewer images than there are threads: the rows of each image are shared out, one convolution after the
 * other. And kernels that are laid out before any call (onednn_prepared.py).
 */
#include <sched.h>

#include "onednn_taps.h"

/* Slabs of rows that an image is cut into at most, and multiplications in one at least: fewer are done as soon as another
 * thread is found. */
enum { MOST_SLABS = 64, LEAST_IN_SLAB = 1 << 20 };

/* A thread that waits looks so often, some tens of microseconds, before it lets others have its core. */
enum { MOST_TURNS = 1000 };

typedef struct {
  Call *call;
  const Shape *shapes;
  int slabs[MOST_LINKS]; /* of each image */
  const Compiled *slab[MOST_LINKS][MOST_SLABS];
  char *maps[MOST_LINKS + 1]; /* the image, what lies between, and the output */
  atomic_int done; /* slabs */
} Rows;

/* The first row of a slab; of one behind the last, the number of rows. */
static int64_t first_row(const Shape *whole, int slabs, int number) { return number * whole->output[1] / slabs; }

/* The first row of the image that a slab sees, or one above it. */
static int64_t first_seen(const Shape *whole, int slabs, int number) {
  return first_row(whole, slabs, number) * whole->window[0] - whole->window[2];
}

/* The convolution of a slab of one image; whether there is one: not of padding alone. */
static int shape_slab(const Shape *whole, int slabs, int number, Shape *slab) {
  const int64_t rows = first_row(whole, slabs, number + 1) - first_row(whole, slabs, number);
  const int64_t first = first_seen(whole, slabs, number);
  const int64_t end = first + (rows - 1) * whole->window[0] + whole->kernel[0], high = whole->image[1];
  *slab = *whole;
  slab->image[0] = slab->output[0] = 1;
  if (slabs == 1) return 1;
  slab->output[1] = rows;
  slab->window[2] = first < 0 ? -first : 0;
  slab->window[3] = end > high ? end - high : 0;
  slab->image[1] = end - first - slab->window[2] - slab->window[3];
  return slab->image[1] > 0;
}

/* Cut the images of convolution `number` into so many slabs; 0 in `*alike`: not all take the same kernel. */
static int cut_into_slabs(Rows *r, int number, int slabs, int *alike) {
  const Compiled **found = r->slab[number];
  r->slabs[number] = slabs;
  *alike = 1;
  for (int i = 0; i < slabs && *alike; ++i) {
    Shape slab;
    *alike = shape_slab(&r->shapes[number], slabs, i, &slab);
    if (*alike) TRY(find(&slab, &found[i]));
    if (*alike) *alike = dnnl.memory_desc_equal(found[0]->laid_out, found[i]->laid_out);
  }
  return SUCCESS;
}

static int cut_rows(Rows *r, int threads) {
  for (int i = 0; i < r->call->links; ++i) {
    const Shape *s = &r->shapes[i];
    const int64_t images = s->image[0], *k = s->kernel;
    const int64_t work = s->output[1] * s->output[2] * k[0] * k[1] * k[2] * k[3];
    int64_t slabs = (threads + images - 1) / images;
    if (slabs > work / LEAST_IN_SLAB) slabs = work / LEAST_IN_SLAB;
    if (slabs > s->output[1]) slabs = s->output[1];
    if (slabs > MOST_SLABS) slabs = MOST_SLABS;
    int alike;
    TRY(cut_into_slabs(r, i, slabs > 1 ? (int)slabs : 1, &alike));
    if (!alike) TRY(cut_into_slabs(r, i, 1, &alike));
    r->call->link[i].part = r->call->link[i].last = r->slab[i][0];
  }
  return SUCCESS;
}

static int64_t bytes_of_row(const int64_t *map) { return map[2] * map[3] * (int64_t)sizeof(float); }

/* A slab of one of the convolutions, counted through all. Threads take them in this order, so that the ones waited for
 * here are under way, in however many threads there are. */
static void do_slab(void *context, int number) {
  Rows *r = context;
  const int threads = omp_get_max_threads(), images = (int)r->shapes->image[0];
  int i = 0, left = number;
  for (; left >= images * r->slabs[i]; ++i) left -= images * r->slabs[i];
  for (unsigned turns = 0; atomic_load(&r->done) < number - left; ++turns)
    if (turns < MOST_TURNS) _mm_pause(); else sched_yield();
  const Shape *s = &r->shapes[i];
  const int image = left / r->slabs[i], slab = left % r->slabs[i];
  const int64_t seen = first_seen(s, r->slabs[i], slab), top = seen < 0 ? 0 : seen;
  const int64_t from = image * bytes_of(s->image) + top * bytes_of_row(s->image);
  const int64_t to = image * bytes_of(s->output) + first_row(s, r->slabs[i], slab) * bytes_of_row(s->output);
  char *const addend = s->kind == EVALUATED_SUM ? r->call->addend + to : NULL;
  const unsigned control = _mm_getcsr();
  omp_set_num_threads(1);
  _mm_setcsr(control | TINY_ARE_ZERO);
  note(r->call, do_link(&r->call->link[i], r->slab[i][slab], 0, r->maps[i] + from, r->maps[i + 1] + to, addend));
  _mm_setcsr(control);
  omp_set_num_threads(threads);
  atomic_fetch_add(&r->done, 1);
}

static int do_rows(const XLA_FFI_CallFrame *frame, int threads, Rows *r) {
  const int links = r->call->links, images = (int)r->shapes->image[0];
  int slabs = 0, at_once = 1;
  size_t size = 0;
  for (int i = 0; i < links; ++i) {
    const size_t needed = images * bytes_of(r->shapes[i].output);
    const int these = images * r->slabs[i];
    slabs += these;
    if (these > at_once) at_once = these;
    if (i < links - 1 && needed > size) size = needed;
  }
  atomic_init(&r->done, 0);
  r->maps[0] = r->call->image;
  for (int i = 1; i < links; ++i)
    if (!(r->maps[i] = own_memory(SHARED + i % 2, size))) return OUT_OF_MEMORY;
  r->maps[links] = r->call->output;
  if (!do_in_parts(frame, at_once < threads ? at_once : threads, slabs, do_slab, r)) return OUT_OF_MEMORY;
  return atomic_load(&r->call->status);
}

/* `convolve`, of convolutions in evaluation none of which is of few outputs, or whose kernels were laid out ahead. */
static int evaluate_many(const XLA_FFI_CallFrame *frame, const Shape *shapes, Call *call) {
  const int threads = threads_of_pool(frame);
  if (shapes->image[0] >= threads) return convolve(frame, shapes, call);
  Rows rows = {.call = call, .shapes = shapes};
  TRY(cut_rows(&rows, threads));
  TRY(make_kernels_ready(frame, threads, call));
  return do_rows(frame, threads, &rows);
}

/* The same of any: those of few outputs one by one, those between them together. */
static int evaluate(const XLA_FFI_CallFrame *frame, const Shape *shapes, Call *call) {
  const int links = call->links;
  int few = 0;
  for (int i = 0; i < links; ++i) few |= is_few(&shapes[i]);
  if (!few || call->link->ahead) return evaluate_many(frame, shapes, call);
  for (int i = 0, end, runs = 0; i < links; i = end, ++runs) {
    for (end = i + 1; !is_few(&shapes[i]) && end < links && !is_few(&shapes[end]);) ++end;
    const size_t size = shapes->image[0] * bytes_of(shapes[end - 1].output);
    Call run = {.links = end - i, .image = call->image, .output = call->output, .addend = call->addend};
    memcpy(run.link, call->link + i, run.links * sizeof *run.link);
    if (end < links) run.output = own_memory(PASSED + runs % 2, size);
    if (!run.output) return OUT_OF_MEMORY;
    TRY(is_few(&shapes[i]) ? convolve_few(frame, &shapes[i], &run) : evaluate_many(frame, &shapes[i], &run));
    call->image = run.output;
  }
  return SUCCESS;
}

/* Find what is compiled for the parts, or slabs, of `evaluate`, and so how it wants its kernels. */
static int find_layouts(const Shape *shapes, int threads, Call *call) {
  if (shapes->image[0] >= threads) return cut_up(shapes, threads, call);
  Rows rows = {.call = call, .shapes = shapes};
  return cut_rows(&rows, threads);
}

/* The kernels of `call`, `plain`, to be laid out in `ahead` bytes at `kernel`, for `evaluate` in as many threads. */
static int lay_out_ahead(const XLA_FFI_CallFrame *frame, const Shape *shapes, Call *call) {
  const int threads = threads_of_pool(frame);
  TRY(find_layouts(shapes, threads, call));
  for (const Link *link = call->link; link < call->link + call->links; ++link) {
    const Compiled *c = link->part;
    if (link->ahead != size_ahead(c)) return LAID_OUT_OTHERWISE;
    memset(link->kernel, 0, link->ahead);
    if (!c->slices) memcpy(link->kernel, link->plain, c->laid_out_size);
    const Purpose purpose = {.layout = layout_of(c)};
    memcpy(link->kernel + aligned(c->laid_out_size), &purpose, sizeof purpose);
  }
  return lay_all_out(frame, threads, call);
}
