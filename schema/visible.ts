/** Text for people who decide by what they see: whatever shows nothing is shown as an escape. */

/**
 * What takes no ink, hides, or changes the order of what is around it: all but the space. The last
 * are blank, though Unicode has them as symbols, letters and marks.
 */
const HIDDEN =
  /(?! )[\p{C}\p{Z}\p{Default_Ignorable_Code_Point}\u2800\u{13441}\u{13442}\u{16fe4}\u{1d159}]/gu;

/** A text in which every character is seen: hidden ones and line feeds as `\u{…}`. */
export function visible(text: string): string {
  return text.replace(HIDDEN, (character) => `\\u{${character.codePointAt(0)!.toString(16)}}`);
}
