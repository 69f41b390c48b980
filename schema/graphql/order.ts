/** The direction of lists whose order can be chosen. */

import { builder } from './builder.ts';

/** Which end of a list comes first. */
export const OrderDirection = builder.enumType('OrderDirection', {
  description: 'Which end of a list comes first.',
  values: {
    ASC: { value: 'asc', description: 'The smallest or oldest.' },
    DESC: { value: 'desc', description: 'The largest or newest.' },
  } as const,
});
