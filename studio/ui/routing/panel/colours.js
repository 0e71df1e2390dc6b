// The colours of experts and groups, which are reused in turn (`EXPERT_COLOURS` in `studio/ui/page/theme.py`).

const COLOURS = 8;

export function colourClass(unit) {
  return `rp-u${unit % COLOURS}`;
}
