// A dashboard as Grafana's own schema types it, narrowed to what ours is made of: a panel is typed by its kind's options.
import type { AnnotationQuery, Dashboard, DataQuery, Panel, RowPanel } from '@grafana/schema';
import type * as Heatmap from '@grafana/schema/raw/heatmap';
import type * as Stat from '@grafana/schema/raw/stat';
import type * as StateTimeline from '@grafana/schema/raw/statetimeline';
import type * as TimeSeries from '@grafana/schema/raw/timeseries';

// A literal's text is as good as the enumeration's name for it.
type Plain<T> = T extends string
  ? `${T}` | T
  : T extends (infer E)[]
    ? Plain<E>[]
    : T extends object
      ? { [K in keyof T]: Plain<T[K]> }
      : T;

// Without an index signature, which would take any name.
type Known<T> = { [K in keyof T as string extends K ? never : K]: T[K] };

// What Prometheus's data source adds: its queries, and how an annotation is named.
interface Query extends DataQuery {
  expr: string;
  legendFormat?: string;
  exemplar?: boolean;
  format?: 'heatmap';
  instant?: boolean;
  range?: boolean;
  interval?: string;
}
interface Marks extends AnnotationQuery<Query> {
  expr?: string;
  step?: string;
  titleFormat?: string;
  textFormat?: string;
}

type Fields = NonNullable<Panel['fieldConfig']>;
type Of<Kind extends string, Options, Custom> = Omit<Panel, 'type' | 'options' | 'fieldConfig' | 'targets'> & {
  type: Kind;
  options: Partial<Options>;
  targets: Query[];
  fieldConfig: {
    defaults: Omit<Known<Fields['defaults']>, 'custom'> & { custom?: Partial<Custom> };
    overrides: Fields['overrides'];
  };
};

export type Board = Plain<
  Omit<Dashboard, 'panels' | 'annotations'> & {
    annotations: { list: Marks[] };
    panels: Array<
      | (RowPanel & { type: 'row' })
      | Of<'timeseries', TimeSeries.Options, TimeSeries.FieldConfig>
      | Of<'stat', Stat.Options, Record<never, never>>
      | Of<'heatmap', Heatmap.Options, Heatmap.FieldConfig>
      | Of<'state-timeline', StateTimeline.Options, StateTimeline.FieldConfig>
    >;
  }
>;
