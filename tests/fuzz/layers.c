/* Fuzz target: any bytes as a layer, through the reader, the unpacker, the packer, and round again.
 *
 * Whatever the bytes are: the reader says the same however they arrive, the unpacker changes nothing but its
 * directory, and what the packer makes of that directory unpacks to the same once more.
 */
#include "layers.h"
#include "target.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#define PATIENCE 20 /* seconds; the slowest input takes a part of one */

int pc_remove_tree (int dir, const char *name);

enum kind
{
  KIND_READ,
  KIND_UNPACKED,
  KIND_PACKED,
};

struct fuzz_counts fuzz_counts;
const uint8_t fuzz_order[4] = { KIND_READ, KIND_UNPACKED, KIND_PACKED, KIND_PACKED };

static struct room room;
static u8 first[OUTPUT_MOST];

static void
print_counts (void)
{
  fprintf (stderr, "layers: executions=%llu read=%llu unpacked=%llu packed=%llu\n",
           (unsigned long long) fuzz_counts.executions, (unsigned long long) fuzz_counts.accepted[KIND_READ],
           (unsigned long long) fuzz_counts.accepted[KIND_UNPACKED],
           (unsigned long long) fuzz_counts.accepted[KIND_PACKED]);
}

/* How it is unpacked follows from the bytes, so that a finding is its bytes alone. */
static u32
choices (const u8 *data, usize size)
{
  u32 hash = 2166136261u;
  for (usize i = 0; i < size; i++)
    hash = (hash ^ data[i]) * 16777619u;
  return hash ^ hash >> 15;
}

static struct reading
read_all_ways (const u8 *data, usize size, u32 chosen)
{
  kernel_stream (data, size, 0);
  struct reading whole = read_layer (2);
  kernel_stream (data, size, chosen % 700 + 1);
  struct reading split = read_layer (2);
  REQUIRE (whole.result == split.result && whole.hash == split.hash && whole.bytes == split.bytes);
  kernel_stream (data, size, chosen % 3 == 0 ? 1 : 0);
  struct reading skipped = read_layer (chosen % 2);
  REQUIRE (whole.result == skipped.result && whole.entries == skipped.entries && whole.bytes == skipped.bytes);
  return whole;
}

/* A packed archive has the same entries, and unpacked over the same layers it packs to the same bytes. */
static void
go_round (int top, u32 lowers, u32 flags, u32 pack_flags, u32 looks_implied)
{
  struct pc_unpack_report packed, unpacked;

  if (pack_layer (top, pack_flags, &packed) < 0)
    {
      /* A path or a header may be longer than it was when links are not followed on its way. */
      REQUIRE (packed.problem == PC_UNPACK_DEPTH
               || (packed.problem == PC_UNPACK_OUTPUT && (packed.error == E2BIG || packed.error == ENOSPC)));
      return;
    }
  usize size = kernel_output_size;
  memcpy (first, kernel_output, size);
  kernel_stream (first, size, 0);
  struct reading reading = read_layer (2);
  REQUIRE (reading.result == 0 && reading.entries == packed.entries);
  REQUIRE (looks_implied || !reading.looks_implied);
  if (packed.entries > MAX_ENTRIES)
    return;
  int again = room_fresh (&room, "again");
  kernel_stream (first, size, 0);
  REQUIRE (write_layer (again, room.lowers, lowers, flags, &unpacked) == 0);
  REQUIRE (unpacked.entries == packed.entries && unpacked.implied == 0);
  room_check (&room, 2);
  REQUIRE (pack_layer (again, pack_flags, &packed) == 0);
  REQUIRE (kernel_output_size == size && memcmp (kernel_output, first, size) == 0);
  if (pack_flags & PC_PACK_WHITEOUTS)
    compare_trees (top, again);
  REQUIRE (pack_layer (again, pack_flags | PC_PACK_HEADERS | PC_PACK_ONE_MOUNT, &packed) == 0);
  kernel_stream (kernel_output, kernel_output_size, 0);
  struct reading headers = read_layer (2);
  REQUIRE (headers.result == 0 && headers.entries == reading.entries && headers.bytes == 0);
  fuzz_counts.accepted[KIND_PACKED]++;
  close (again);
  REQUIRE (pc_remove_tree (room.work, "again") == 0);
}

static void
unpack_and_pack (const u8 *data, usize size, u32 chosen, const struct reading *reading)
{
  struct pc_unpack_report report;
  u32 lowers = (chosen >> 12) % 3;
  u32 flags = geteuid () == 0 ? chosen >> 8 & (PC_UNPACK_OWNERS | PC_UNPACK_DEVICES | PC_UNPACK_READABLE) : 0;
  if (chosen & 0x20000)
    flags |= PC_UNPACK_MERGE;
  else if (chosen & 0x40000)
    flags |= PC_UNPACK_THROUGH;
  int top = room_fresh (&room, "layer");

  kernel_stream (data, size, chosen & 0x400 ? chosen % 700 + 1 : 0);
  int error = write_layer (top, room.lowers, lowers, flags, &report);
  if (reading->result != 0)
    REQUIRE (error != 0);
  room_check (&room, 1);
  if (error == 0)
    {
      fuzz_counts.accepted[KIND_UNPACKED]++;
      if (reading->bytes <= MAX_BYTES)
        go_round (top, lowers, flags, chosen & 0x10000 ? PC_PACK_WHITEOUTS : 0, reading->looks_implied);
    }
  close (top);
  REQUIRE (pc_remove_tree (room.work, "layer") == 0);
  room_check (&room, 0);
}

static void
hangs (int signal_number)
{
  (void) signal_number;
  fprintf (stderr, "layers: no end after %d seconds\n", PATIENCE);
  abort ();
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  if (fuzz_counts.executions++ == 0)
    {
      atexit (print_counts);
      signal (SIGALRM, hangs);
      room_make (&room);
    }
  u32 chosen = choices (data, size);
  alarm (PATIENCE);
  kernel_begin ();
  struct reading reading = read_all_ways (data, size, chosen);
  if (reading.result == 0)
    fuzz_counts.accepted[KIND_READ]++;
  /* Input that ends before its first entry leaves nothing behind, so it is rarely run twice. */
  if (reading.entries > 0 || chosen % 8 == 0)
    unpack_and_pack (data, size, chosen, &reading);
  kernel_end ();
  alarm (0);
  return 0;
}
