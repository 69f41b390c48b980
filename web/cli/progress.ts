/** Progress on stderr: a bar where a person watches, a few plain lines where a file or program does. */

import { stderr } from 'node:process';
import { SingleBar } from 'cli-progress';

/** Shows how far a piece of work has come. */
export interface Progress {
  /** Says how many of how many are done. */
  show(done: number, total: number): void;
  /** Leaves the terminal as it was. */
  stop(): void;
}

const LINES = 10;

/** Starts to show progress. `noun` names what is counted, in the plural. */
export function showProgress(noun: string): Progress {
  return stderr.isTTY ? drawBar(noun) : writeLines(noun);
}

function drawBar(noun: string): Progress {
  const bar = new SingleBar({
    format: `{bar} {percentage}% | {value}/{total} ${noun}`,
    stream: stderr,
    hideCursor: true,
  });
  let started = false;
  return {
    show(done, total) {
      if (!started) bar.start(total, done);
      started = true;
      bar.update(done);
    },
    stop: () => bar.stop(),
  };
}

/** A line each time that a further tenth is done, however much there is to do. */
function writeLines(noun: string): Progress {
  let tenths = 0;
  return {
    show(done, total) {
      const reached = Math.floor((done / total) * LINES);
      if (reached > tenths) stderr.write(`${done}/${total} ${noun}\n`);
      tenths = reached;
    },
    stop() {},
  };
}
