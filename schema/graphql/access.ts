/** Who may read a field: each one declares its action or `public`, or the schema is not built. */

import SchemaBuilder, {
  BasePlugin,
  type PothosOutputFieldConfig,
  type SchemaTypes,
} from '@pothos/core';
import type { AdminAction } from '../roles.ts';

/** What a field takes: an action of the roles' table, or nothing. */
export type Access = AdminAction | 'public';

declare global {
  export namespace PothosSchemaTypes {
    interface Plugins<Types extends SchemaTypes> {
      access: AccessPlugin<Types>;
    }
    // The names of the parameters must be those of the interface that this adds to.
    interface FieldOptions<
      Types,
      ParentShape,
      Type,
      Nullable,
      Args,
      ResolveShape,
      ResolveReturnShape,
    > {
      /** The action that reading or running the field takes. */
      action: Access;
    }
  }
}

/**
 * Turns `action` into the scope that the authorization plugin checks before the field's resolver,
 * and so before a mutation's effect.
 */
class AccessPlugin<Types extends SchemaTypes> extends BasePlugin<Types> {
  override onOutputFieldConfig(
    field: PothosOutputFieldConfig<Types>,
  ): PothosOutputFieldConfig<Types> {
    const options = field.pothosOptions as { action?: Access; nullable?: unknown };
    const name = `${field.parentType}.${field.name}`;
    if (options.action === undefined)
      throw new Error(`${name} declares no action and is not public`);
    const extensions = { ...field.extensions, action: options.action };
    if (options.action === 'public') return { ...field, extensions };
    // A refusal makes the field null; a field that can't be null would take its parent along.
    if (!field.type.nullable) throw new Error(`${name} is guarded, so it must be nullable`);
    const scoped = { ...field.pothosOptions, authScopes: { may: options.action } };
    return { ...field, extensions, pothosOptions: scoped } as PothosOutputFieldConfig<Types>;
  }
}

SchemaBuilder.registerPlugin('access', AccessPlugin);
