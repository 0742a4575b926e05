/*
 * projection.h
 *		Read models: the query taken apart, its upkeep as a small program of
 *		SQL, and the row of saga.projection.
 *
 * Words: a *source* is a table that the query reads; a *delta* is a bag of its
 * changed rows with weights (+1 came, -1 went), consolidated; a *stage* is one
 * query block kept in a storage table of its own, which reads sources and
 * earlier stages; the *program* of a projection is its stages in order, the
 * last of which holds the result.
 *
 * A batch has one snapshot S.  Statements read sources and storage under S
 * (the NEW state; nobody needs the old one) and deltas as named tuplestores.
 */
#ifndef SAGA_PROJECTION_H
#define SAGA_PROJECTION_H

#include "postgres.h"

#include "access/tupdesc.h"
#include "datatype/timestamp.h"
#include "nodes/bitmapset.h"
#include "nodes/pg_list.h"
#include "utils/tuplestore.h"

#define SAGA_DATA_SCHEMA "saga_data"	/* where storage tables are */

/* How a stage is kept, cheapest first; saga_class_name() gives the words. */
typedef enum SagaClass
{
	SAGA_CLASS_DELTA,			/* linear, invertible aggregates */
	SAGA_CLASS_DISTINCT,		/* counted rows: distinct and set operations */
	SAGA_CLASS_MIN_MAX,			/* delta; a group is recomputed when it loses
								 * its extreme */
	SAGA_CLASS_GROUP,			/* affected groups are recomputed */
	SAGA_CLASS_KEY,				/* affected keys are recomputed */
	SAGA_CLASS_FULL,			/* the stage is recomputed and compared */
} SagaClass;

extern const char *saga_class_name(SagaClass class);
extern bool saga_class_from_name(const char *name, SagaClass *class);

/* A table that the query reads, however often. */
typedef struct SagaSource
{
	Oid			relid;
	char	   *name;			/* qualified and quoted */
	TupleDesc	desc;			/* the table's */
	Bitmapset  *columns;		/* attribute numbers used; never empty-handed:
								 * a count(*) uses none and that is fine */
	char	   *delta;			/* name of its delta in statements: columns as
								 * in desc (unused ones null), then "saga_w"
								 * bigint */
} SagaSource;

/* One statement of a program; runs with the rights of the owner. */
typedef struct SagaStatement
{
	char	   *sql;			/* every name qualified */
	char	   *capture;		/* its rows become this named tuplestore, or NULL */
	char	   *unless_empty;	/* run only if this tuplestore has rows, or NULL */
} SagaStatement;

typedef struct SagaStage
{
	int			number;			/* 0.. in order of upkeep */
	SagaClass	class;
	char	   *what;			/* e.g. "aggregate over 4 tables" */
	char	   *reason;			/* why this class and not a cheaper one */
	Bitmapset  *sources;		/* indexes into program->sources read directly */
	Bitmapset  *stages;			/* numbers of the stages it reads */
	bool		feeds;			/* a later stage reads it: its delta is needed */
	char	   *delta;			/* name of its delta: its output columns, then
								 * "saga_w" */
	char	   *storage;		/* qualified name of its storage table */
	List	   *advice;			/* of char *: CREATE INDEX statements that upkeep
								 * would profit from and that do not exist */
	struct SagaBlock *block;	/* private to projection_*.c of the planner */
} SagaStage;

typedef struct SagaProgram
{
	int64		id;
	List	   *sources;		/* of SagaSource *, in OID order */
	List	   *views;			/* of Oid: views that it reads through */
	List	   *stages;			/* of SagaStage * */
	TupleDesc	result;			/* the public view's columns */
	bool		deterministic;	/* false: ties may be decided either way */
	SagaClass	class;			/* the dearest of the stages */
	char	   *live_query;		/* the query, every name qualified */
	char	   *stored_query;	/* the same rows, read from storage */
	char	   *shape;			/* digest of storage layout and result: equal
								 * means that stored rows still fit */
} SagaProgram;

/*
 * Parse, check and take apart, with the rights and the search_path in force;
 * the caller has set both.  Refuses (0A000 or the parser's own error) with
 * the construct, the reason and what to write instead.  id names the storage
 * tables: saga_data.p<id>_<stage>; 0 for a look only.  key: output columns to
 * recompute by, or NIL.
 */
extern SagaProgram *saga_program_build(const char *query, int64 id, List *key);

/* CREATE TABLE / INDEX statements of all stages (of char *). */
extern List *saga_program_storage_ddl(SagaProgram *program);

/*
 * An index on the result, from a user's column list as in CREATE INDEX
 * ("month, revenue DESC"); 42703 for a name that is no output column.
 */
extern char *saga_program_index_ddl(SagaProgram *program, const char *columns);

/*
 * The statements (of SagaStatement *) by which a stage follows: the sources
 * and stages whose deltas are given (and not empty).  They leave the stage's
 * own delta under stage->delta if it feeds others.
 */
extern List *saga_stage_maintain(SagaProgram *program, SagaStage *stage,
								 Bitmapset *changed_sources,
								 Bitmapset *changed_stages);

/* Statements that fill the empty storage of a stage. */
extern List *saga_stage_fill(SagaProgram *program, SagaStage *stage);

/*
 * Statements that bring the stage to its query by difference, whatever it
 * holds; they touch only rows that differ, and leave its delta if it feeds.
 */
extern List *saga_stage_diff(SagaProgram *program, SagaStage *stage);

/*
 * Tables (OIDs) whose updates and deletes the WAL does not tell in full, of the
 * given sources (indexes; NULL: of all).
 */
extern List *saga_tables_without_identity(const SagaProgram *program,
										  const Bitmapset *sources);

/* ---- deltas (projection_delta.c) ---- */

typedef struct SagaDelta
{
	Oid			relid;			/* the source */
	TupleDesc	desc;			/* the source's columns and saga_w */
	Tuplestorestate *store;		/* complete when finished */
	int64		rows;			/* after consolidation */
	struct SagaDeltaTable *table;
} SagaDelta;

/*
 * In the caller's memory context, within one transaction; end it before that
 * commits (it may have a file), after an error nothing needs to be done.
 */
extern SagaDelta *saga_delta_begin(const SagaSource *source);

/* values/nulls in the layout of the source; unused columns are ignored. */
extern void saga_delta_add(SagaDelta *delta, const Datum *values,
						   const bool *nulls, int weight);
extern void saga_delta_finish(SagaDelta *delta);	/* cancels out, sets rows */
extern void saga_delta_end(SagaDelta *delta);

/* ---- running a program (projection_apply.c) ---- */

typedef struct SagaApply SagaApply;

/* Plans are kept in a memory context of its own until saga_apply_free(). */
extern SagaApply *saga_apply_make(SagaProgram *program, Oid owner);
extern void saga_apply_free(SagaApply *apply);

typedef struct SagaApplyResult
{
	int64		statements;
	int64		rows_in;		/* delta rows of sources */
	int64		rows_out;		/* rows written to storage */
} SagaApplyResult;

/*
 * In a transaction with an active snapshot, as the worker; switches to the
 * owner by itself.  deltas: of SagaDelta *, those of the program's sources that
 * changed.  recompute: indexes of sources whose change no delta can say
 * (TRUNCATE, missing old images); stages that read them run by difference.
 * Errors are the caller's to catch (one subtransaction around the call).
 */
extern void saga_apply_deltas(SagaApply *apply, List *deltas,
							  Bitmapset *recompute, SagaApplyResult *result);
extern void saga_apply_fill(SagaApply *apply, SagaApplyResult *result);
extern void saga_apply_diff(SagaApply *apply, SagaApplyResult *result);

/*
 * Contents against the query under the active snapshot: rows missing from the
 * projection, and rows too many.
 */
extern void saga_apply_check(SagaApply *apply, int64 *missing, int64 *extra);

#endif							/* SAGA_PROJECTION_H */
