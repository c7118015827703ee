/* Mutations that know what a buffer of plan.h looks like. */
#include "mutate.h"
#include "plan.h"

#include <string.h>

static u8 *work;
static usize work_size;
static usize room;
static const u8 *donor;
static usize donor_size;

#define any mutate_any
#define below mutate_below
#define CHOOSE(array) (array)[below (sizeof (array) / sizeof (array)[0])]

static u32
word_at (usize at)
{
  u32 value;
  memcpy (&value, work + at, sizeof value);
  return value;
}

static void
set_word (usize at, u32 value)
{
  memcpy (work + at, &value, sizeof value);
}

/* A number at which something ends. */
static u32
edge (void)
{
  static const u32 values[] = { 0,   1,   2,   3,    4,    7,     8,     15,         16,         24,
                                40,  64,  127, 128,  199,  200,   201,   255,        256,        512,
                                4095, 4096, 65535, 65536, 0x7fffffff, 0x80000000, 0xfffffff8, 0xfffffffe,
                                0xffffffff };
  if (below (3) == 0)
    return (u32) work_size + (u32) below (17) - 8;
  return CHOOSE (values);
}

static usize
any_word (void)
{
  return below (work_size / 4) * 4;
}

static void
flip_bit (void)
{
  work[below (work_size)] ^= (u8) (1u << below (8));
}

static void
set_byte (void)
{
  work[below (work_size)] = (u8) any ();
}

static void
set_edge (void)
{
  usize at = any_word ();
  if (at + 4 <= work_size)
    set_word (at, edge ());
}

static void
nudge (void)
{
  usize at = any_word ();
  if (at + 4 <= work_size)
    set_word (at, word_at (at) + (u32) below (33) - 16);
}

/* Take two words for a reference and lead it to the end of the buffer, or a little past it. */
static void
lead_to_the_end (void)
{
  static const i32 steps[] = { 0, 0, 1, -1, 2, -2, 4, -4, 8, -8, 16, 24, 40 };
  usize at = any_word ();
  if (at + 8 > work_size)
    return;
  u32 slack = (u32) CHOOSE (steps);
  if (below (2) == 0)
    set_word (at, (u32) work_size - word_at (at + 4) + slack);
  else
    set_word (at + 4, (u32) work_size - word_at (at) + slack);
}

/* Take two words for a reference, and make it one of what may stand in the buffer. */
static void
make_reference (void)
{
  static const u32 units[] = { 1, 4, 8, 16, 24, 40, 48 };
  usize at = any_word ();
  if (at + 8 > work_size)
    return;
  u32 offset = (u32) below (work_size + 1);
  if (below (4) != 0)
    offset &= ~7u;
  u32 unit = CHOOSE (units);
  u32 size = (u32) below (((u32) work_size - offset) / unit + 2) * unit;
  set_word (at, offset);
  set_word (at + 4, below (8) == 0 ? 0u - offset + (u32) below (16) : size);
}

static void
cut (void)
{
  work_size -= below (2) == 0 ? below (work_size) : below (work_size < 40 ? work_size : 40);
}

static void
extend (void)
{
  usize more = below (64) + 1;
  if (work_size + more > room)
    return;
  for (usize i = 0; i < more; i++)
    work[work_size + i] = below (2) == 0 ? 0 : (u8) any ();
  work_size += more;
}

static void
copy_block (void)
{
  usize from = below (work_size), to = below (work_size);
  usize most = work_size - (from > to ? from : to);
  memmove (work + to, work + from, below (most) + 1);
}

static void
splice (void)
{
  if (donor_size == 0)
    return;
  usize at = below (work_size) & ~(usize) 7;
  usize from = below (donor_size) & ~(usize) 7;
  usize count = below (donor_size - from + 1);
  if (count > room - at)
    count = room - at;
  memcpy (work + at, donor + from, count);
  if (at + count > work_size || below (2) == 0)
    work_size = at + count;
}

static void
set_size (usize at, usize size)
{
  if (at % 4 == 0 && at <= work_size && work_size - at >= 12)
    set_word (at + offsetof (struct pc_plan, size), (u32) size);
}

/* A wrong size is refused at once: make most inputs, and the buffers inside of them, get further. */
static void
mend_sizes (void)
{
  static const usize inner[] = { offsetof (struct pc_plan, security), offsetof (struct pc_plan, command) };
  if (below (8) == 0)
    return;
  set_size (0, work_size);
  if (work_size < sizeof (struct pc_plan) || word_at (0) != PC_PLAN_MAGIC || below (8) == 0)
    return;
  for (usize i = 0; i < COUNT (inner); i++)
    if (word_at (inner[i] + 4) >= 12)
      set_size (word_at (inner[i]), word_at (inner[i] + 4));
}

size_t
mutate (uint8_t *data, size_t size, size_t most, const uint8_t *other, size_t other_size)
{
  static void (*const all[]) (void)
      = { flip_bit,        set_byte, set_edge,   set_edge,       nudge,  nudge, lead_to_the_end,
          lead_to_the_end, cut,      copy_block, make_reference, extend, splice };

  work = data;
  work_size = size;
  room = most;
  donor = other;
  donor_size = other_size;
  for (usize n = below (2) == 0 ? 1 : below (4) + 1; n > 0; n--)
    if (work_size > 0)
      CHOOSE (all) ();
  mend_sizes ();
  return work_size;
}
