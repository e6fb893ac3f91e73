"""The tables that plans and kernels share: what each column holds. Everything is int64; distances count elements.

A *tile* is up to `lanes` query rows that are worked on together. A *run* is a series of keys it visits. Keys stand on
one long axis: the keys themselves first, then every key list of the plan, each from a multiple of `STEP` on; a step of
the online softmax takes the visited keys between two multiples of STEP on that axis. So how a row's result is rounded
depends on its own keys alone, never on the rows beside it.
"""

STEP = 96  # keys in one step of the online softmax: a multiple of the 6 rows of the register tile

# tiles[t]: rows are FIRST_ROW + i * ROW_STEP, or rows[ROW_LIST + i]; runs are RUN_BEGIN <= r < RUN_END
FIRST_ROW, ROW_STEP, ROW_LIST, ROW_COUNT, RUN_BEGIN, RUN_END = range(6)
TILE_COLUMNS = 6

# runs[r]: keys are FIRST_KEY + t * KEY_STEP, or keys[KEY_LIST + t], for t < KEY_COUNT; the first one stands at AXIS.
# Keys FULL_BEGIN <= t < FULL_END are allowed to every row; the others as MASK says.
FIRST_KEY, KEY_STEP, KEY_LIST, KEY_COUNT, AXIS, FULL_BEGIN, FULL_END, MASK, LEFT, RIGHT, BLOCK = range(11)
RUN_COLUMNS = 11
BITS_AT = LEFT

# MASK: all keys | p // BLOCK - LEFT <= j // BLOCK <= p // BLOCK + RIGHT | its negation | bits[BITS_AT + t], a bit a row
MASK_FULL, MASK_BAND, MASK_OUTSIDE_BAND, MASK_BITS = range(4)

# geometry: sizes and strides of one head
(
    D,
    D_V,
    SHIFT,  # position of query row 0: n_k - n_q
    FOLD,  # 1: `out` and `lse` hold an earlier result over other keys, to go on from
    KEEP_LSE,
    Q_ROW,
    Q_COLUMN,
    K_ROW,
    K_COLUMN,
    V_ROW,
    V_COLUMN,
    OUT_ROW,
    OUT_COLUMN,
    LSE_STEP,
    N_K,
    PACK,  # tiled, 1: keys and values are copied side by side before use, see PACK_BYTES
    G_ROW,  # backward: the gradient of `out`; the gradients that are written lie side by side
    G_COLUMN,
    BY_KEY,  # gathered backward, 1: lists of the query rows of each key
) = range(19)
GEOMETRY_COLUMNS = 19

# head: one row for each query head of each batch. Numbers marked f are the bits of a float64.
(
    BATCH,
    HEAD,
    KEY_BEGIN,  # keys j < KEY_BEGIN or j >= KEY_END are not there
    KEY_END,
    SINK,  # f: a logit, times log2(e), that joins the softmax of every row; -inf for none
    MASK_MOD,  # addresses of functions that change a step or a list on the way, 0 for none: see `modifiers`
    MODIFY,
    SCORE_MOD,
    THIN,
    SOFTCAP,  # f: times log2(e); 0 for none
    SLOPE,  # f: of ALiBi, times log2(e)
    SEED,
    DROP_BELOW,  # 32-bit draws below this are dropped
    KEEP_SCALE,  # f: what the weights that are kept are multiplied by
    POSITION,  # position of query row 0
    SELECTS,  # 1: lists must be gone through for the keys that are there
    MODIFIES,  # 1: MODIFY or SCORE_MOD is given; RISING: and the larger of two scores stays so
) = range(17)
HEAD_COLUMNS = 17
RISING = 2

# how the pairs that a modifier is given lie: (keys, lanes) with a row a lane; the keys of one row; the rows of one key
BY_TILE, BY_ROW, BY_COLUMN = range(3)

# Rows far apart fall into the same few sets of a cache and push one another out. From this distance on (and where
# columns are not neighbours) the keys of a step are copied into a panel, and the last PANELS panels are kept:
# neighbouring tiles share their keys. Strided(128), n = 16,384: 37 GF/s without, 48 GF/s with panels.
PACK_BYTES = 2048
PANELS = 16

# Lists are worked on for a block of rows at a time: so many pairs at most, unless one list is longer
BLOCK_PAIRS = 1 << 14

NO_LIST = -1
WHOLE_AXIS = 1 << 62
VECTOR_BYTES = 64


def lanes_of(itemsize: int) -> int:
    """Query rows in a tile: the elements of one 64-byte vector."""
    return VECTOR_BYTES // itemsize


def scratch_sizes(d: int, d_v: int, itemsize: int, pack: bool, backward: bool = False) -> tuple[int, int]:
    """Elements of float and of int64 scratch that one worker of a kernel needs; `itemsize` is that of the scratch."""
    lanes = lanes_of(itemsize)
    padded = [(width + lanes - 1) // lanes * lanes for width in (d, d_v)]
    queries, values, steps = (3, 2, 3) if backward else (1, 1, 1)  # how often a kernel holds each
    floats = lanes * (queries * padded[0] + values * padded[1] + steps * (STEP + 8) + 4)
    panels = (PANELS + 1) * STEP * (d + d_v) if pack else 0
    return floats + panels, 5 * (STEP + 8) + 4 * lanes + PANELS


def list_scratch_sizes(
    d: int, d_v: int, itemsize: int, longest: int, backward: bool = False, selects: bool = False
) -> tuple[int, int]:
    """The same of a worker that follows lists, the longest of which has `longest` keys."""
    pairs = max(BLOCK_PAIRS, longest)
    floats = 4 * lanes_of(itemsize) + 5 * max(d, d_v) + (3 if backward else 1) * pairs
    return floats, BLOCK_PAIRS + 3 + 2 * pairs if selects else 1
