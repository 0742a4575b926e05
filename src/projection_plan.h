/*
 * projection_plan.h
 *		Private to the planner of projections: projection_query.c (reading),
 *		_check.c (refusing), _class.c and _cut.c (taking apart), _rows.c,
 *		_groups.c, _aggs.c, _sets.c, _keys.c and _skeleton.c (the kinds of
 *		stages), _tree.c and _sql.c (tools), _advice.c, _program.c.
 *
 * A stage is planned as a *block*: query trees whose range tables hold sources
 * (RTE_RELATION) and earlier stages (RTE_NAMEDTUPLESTORE named by a token).
 * Statements are made by exchanging entries of those trees for deltas and
 * deparsing them.  Tokens are identifiers that no user writes; expanding them
 * is the last step of deparsing:
 *		"saga:stage N"			the output of stage N, new state
 *		"saga:storage N"		the storage rows of stage N, once each
 *		"saga:both X"			X new and the rows that left it: a superset of
 *								old and new state
 *		"saga:signed X"			X old, as new minus delta, with saga_w
 * where X is sN for a stage and rOID for a source.
 */
#ifndef SAGA_PROJECTION_PLAN_H
#define SAGA_PROJECTION_PLAN_H

#include "postgres.h"

#include "nodes/parsenodes.h"
#include "nodes/primnodes.h"

#include "projection.h"

#define SAGA_WEIGHT "saga_w"

/*
 * Above so many changed occurrences, terms telescope: fewer of them, but they
 * join unions, which takes the planner's index look-ups away.
 */
#define SAGA_MAX_EXPANDED 6

typedef struct SagaColumn
{
	char	   *name;
	Oid			type;
	int32		typmod;
	Oid			collation;
	bool		notnull;		/* known to hold no nulls */
} SagaColumn;

typedef enum SagaBlockKind
{
	SAGA_BLOCK_ROWS,			/* linear, rows identified by keys */
	SAGA_BLOCK_COUNTED,			/* linear, equal rows counted */
	SAGA_BLOCK_GROUPS,			/* linear, grouped: counts and sums kept */
	SAGA_BLOCK_SETS,			/* set operation: a counter per leaf */
	SAGA_BLOCK_KEYED,			/* recomputed by key */
	SAGA_BLOCK_FULL,			/* recomputed */
} SagaBlockKind;

/* A column of SAGA_BLOCK_GROUPS that follows by adding, or by comparing. */
typedef enum SagaPieceKind
{
	SAGA_PIECE_ADD,
	SAGA_PIECE_MIN,
	SAGA_PIECE_MAX,
} SagaPieceKind;

typedef struct SagaPiece
{
	SagaPieceKind kind;
	SagaColumn *column;
	char	   *arg;			/* column of the cores */
	char	   *sql;			/* sum over the deltas (ADD) */
	bool		nonfinite;		/* may become NaN: then the group is
								 * recomputed */
	bool		no_zero_test;	/* "= 0" does not mean "nothing" */
	char	   *removed;		/* MIN, MAX: column that carries the extreme of
								 * what left; null in stored rows */
	Oid			compare;		/* MIN, MAX: the operator "beyond or equal" */
} SagaPiece;

/* How an aggregate is kept. */
typedef enum SagaAggKind
{
	SAGA_AGG_NONE,
	SAGA_AGG_COUNT,
	SAGA_AGG_SUM,
	SAGA_AGG_AVG,
	SAGA_AGG_VAR_SAMP,
	SAGA_AGG_VAR_POP,
	SAGA_AGG_STDDEV_SAMP,
	SAGA_AGG_STDDEV_POP,
	SAGA_AGG_BOOL_AND,
	SAGA_AGG_BOOL_OR,
	SAGA_AGG_MIN,
	SAGA_AGG_MAX,
} SagaAggKind;

typedef struct SagaBlock
{
	SagaBlockKind kind;
	List	   *cores;			/* of Query *: linear; target list: the first
								 * columns of storage, or keys and arguments */
	Query	   *query;			/* KEYED, FULL: the block; target list: the
								 * columns of storage */
	List	   *keys;			/* KEYED: expressions over query, the first
								 * nkeys columns of storage */
	bool		one_group;		/* no key: there is always one row */

	List	   *columns;		/* of SagaColumn *: storage */
	int			nkeys;			/* so many of them identify a row */
	List	   *pieces;			/* GROUPS: of SagaPiece * */
	char	   *multiplicity;	/* COUNTED, SETS: how often a storage row is
								 * to be shown, over storage columns */
	bool		repeats;		/* ... which may be more than once */

	Query	   *view;			/* output over "saga:storage N" */
	List	   *out;			/* of SagaColumn *: output */
	List	   *unique;			/* of int: output columns that identify a row,
								 * or NIL */
} SagaBlock;

typedef struct SagaStagedText
{
	char	   *text;
	int			stage;
} SagaStagedText;

/* What the planner of one program carries along. */
typedef struct SagaPlanner
{
	SagaProgram *program;
	List	   *key;			/* output columns to recompute by (of char *) */
	List	   *texts;			/* of SagaStagedText *: to find the stage of a
								 * query that is there already */
	List	   *order;			/* ORDER BY at the top (SortGroupClauses) */
	bool		deterministic;
} SagaPlanner;

/* Which inputs changed in a batch. */
typedef struct SagaChanges
{
	SagaProgram *program;
	Bitmapset  *sources;
	Bitmapset  *stages;
} SagaChanges;

/* 0A000: construct (errmsg), reason (errdetail), way out (errhint). */
#define SAGA_REFUSE(message, detail, hint) \
	ereport(ERROR, \
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED), \
			 message, detail, hint))

/* ---- projection_query.c: from text to a normalised tree ---- */
extern Query *saga_query_read(const char *text, List **views);
extern void saga_query_pull_up(Query *query);
extern bool saga_order_sensitive(Query *query);
extern bool saga_query_simple(const Query *query, bool with_order);
extern void saga_blank_rte(Query *query, int rtindex);
extern bool saga_query_correlated(const Query *query);
extern bool saga_projection_of_view(Oid relid, char **query,
									char **search_path);

/* ---- projection_check.c ---- */
extern void saga_query_check(Query *query);
extern void saga_refuse_name(const char *name);
extern void saga_query_check_output(Query *query);
extern void saga_check_rights(SagaProgram *program);
extern bool saga_type_image_equal(Oid type, int32 typmod, Oid collation);
extern bool saga_type_groupable(Oid type);
extern bool saga_type_hashable(Oid type);

/* ---- projection_tree.c: tools on trees ---- */
typedef Node *(*SagaVarMapper) (Var *var, void *arg);
extern Node *saga_map_vars(Node *node, SagaVarMapper mapper, void *arg);
extern Node *saga_replace_exprs(Node *node, List *from, List *to);
extern bool saga_has_sublink(Node *node);
extern bool saga_has_outer_join(Node *jointree);
extern RangeTblEntry *saga_enr_rte(const char *name, const char *alias,
								   List *columns);
extern Query *saga_select_from(RangeTblEntry *rte);
extern TargetEntry *saga_target(Query *query, Expr *expr, const char *name);
extern List *saga_quals(Node *jointree);
extern void saga_from_list(Node *jointree, List **items, List **quals);
extern List *saga_target_columns(List *targetlist);
extern SagaColumn *saga_column(const char *name, Oid type, int32 typmod,
							   Oid collation);
extern SagaColumn *saga_column_of_expr(const char *name, Node *expr);
extern Var *saga_column_var(int varno, int attno, SagaColumn *column);
extern Expr *saga_equal(Expr *left, Expr *right);
extern bool saga_expr_notnull(Query *query, Node *expr);
extern TupleDesc saga_columns_desc(List *columns);
extern int	saga_rte_stage(const RangeTblEntry *rte);	/* number, or -1 */
extern bool saga_rte_input(const RangeTblEntry *rte);
extern void saga_collect_inputs(Node *node, List **relids,
								Bitmapset **stages);
extern Node *saga_whole_row(Query *query, Var *var);
extern bool saga_reads_one_rows(SagaProgram *program, Node *expr);
extern Var *saga_var_of(Query *query, int rtindex, AttrNumber attno);
extern bool saga_one_row(SagaProgram *program, const RangeTblEntry *rte);
extern int	saga_determines(SagaPlanner *planner, Query *query, List *quals,
							int rtindex, Bitmapset *entries);
extern List *saga_core_identity(SagaPlanner *planner, Query *core);
extern List *saga_unique_key(SagaProgram *program, const RangeTblEntry *rte);

/* ---- projection_program.c ---- */
extern int	saga_stage_add(SagaPlanner *planner, SagaBlock *block,
						   SagaClass class, const char *reason);

/* ---- projection_advice.c ---- */
extern void saga_stage_advise(SagaProgram *program, SagaStage *stage);

/* ---- projection_cut.c ---- */
extern List *saga_nulls_for(List *exprs);
extern void saga_cut_core(SagaPlanner *planner, Query *query);
extern void saga_cut_grouping(SagaPlanner *planner, Query *query);
extern void saga_cut_below_distinct(SagaPlanner *planner, Query *query);
extern void saga_drop_junk(SagaPlanner *planner, Query *query, bool top);

/* ---- projection_class.c ---- */
extern int	saga_stage_for(SagaPlanner *planner, Query *query);
extern RangeTblEntry *saga_stage_rte(SagaPlanner *planner, int stage);
extern int	saga_plan_query(SagaPlanner *planner, Query *query, bool top);
extern int	saga_plan_full(SagaPlanner *planner, Query *query, bool top,
						   const char *reason);
extern Query *saga_select_stage(SagaPlanner *planner, int stage);
extern bool saga_linear(Query *query);
extern bool saga_make_distinct(Query *query);

/* ---- projection_aggs.c ---- */
extern bool saga_groups_invertible(Query *query, SagaClass *class,
								   char **why);
extern List *saga_own_aggregates(Query *query);
extern SagaAggKind saga_agg_kind(Aggref *agg, char **why);
extern Expr *saga_agg_arg(Aggref *agg);
extern int	saga_fixed_scale(Node *expr);

/* ---- projection_groups.c ---- */
extern SagaBlock *saga_groups_block(SagaPlanner *planner, Query *query,
									int number, bool top);
extern void saga_add_dependent_keys(Query *query);
extern List *saga_groups_maintain(SagaProgram *program, SagaStage *stage,
								  SagaChanges *changes);
extern char *saga_groups_fresh(SagaProgram *program, SagaStage *stage,
							   const char *only);

/* ---- projection_rows.c ---- */
extern SagaBlock *saga_rows_block(SagaPlanner *planner, Query *query,
								  int number, bool top);
extern List *saga_rows_maintain(SagaProgram *program, SagaStage *stage,
								SagaChanges *changes);
extern char *saga_rows_fresh(SagaProgram *program, SagaStage *stage);
extern char *saga_consolidate(List *columns, const char *terms);
extern void saga_set_view(SagaBlock *block, Query *view, bool top);
extern SagaStatement *saga_output_delta(SagaProgram *program,
										SagaStage *stage);
extern SagaStatement *saga_put_out(SagaProgram *program, SagaStage *stage,
								   const char *rows);
extern char *saga_touched_sql(SagaProgram *program, SagaStage *stage);

/* ---- projection_skeleton.c ---- */
extern List *saga_skeletons(SagaProgram *program, SagaBlock *block,
							RangeTblEntry *target, SagaChanges *changes);

/* ---- projection_keys.c ---- */
extern List *saga_core_key(SagaPlanner *planner, Query *query);
extern List *saga_grouping_key(SagaPlanner *planner, Query *query);
extern List *saga_user_keys(SagaPlanner *planner, Query *query, List *allowed);
extern bool saga_keys_work(SagaPlanner *planner, Query *query, List *keys,
						   const char **reason);
extern SagaBlock *saga_keyed_block(SagaPlanner *planner, Query *query,
								   List *keys, int number, bool top);
extern char *saga_keyed_fresh(SagaProgram *program, SagaStage *stage,
							  const char *keys);
extern List *saga_keyed_maintain(SagaProgram *program, SagaStage *stage,
								 SagaChanges *changes);

/* ---- projection_sql.c ---- */
extern char *saga_deparse(SagaProgram *program, Query *query);
extern char *saga_deparse_raw(Query *query);
extern char *saga_expr_sql(SagaProgram *program, Query *query, Expr *expr);
extern char *saga_row_sql(List *columns, const char *alias);
extern char *saga_hash_sql(List *columns, const char *alias);
extern Query *saga_parse_over_storage(int stage, List *columns,
									  const char *select_list);
extern char *saga_core_terms(SagaProgram *program, List *cores,
							 SagaChanges *changes, int *nterms);
extern char *saga_core_new(SagaProgram *program, List *cores);
extern bool saga_rte_changed(SagaChanges *changes, const RangeTblEntry *rte);
extern void saga_rte_to_delta(SagaProgram *program, RangeTblEntry *rte);
extern void saga_rte_to_both(SagaProgram *program, RangeTblEntry *rte);
extern char *saga_column_list(List *columns, int n, const char *alias);
extern char *saga_equal_sql(SagaColumn *column, const char *left,
							const char *right);
extern char *saga_operator_sql(Oid operator);
extern char *saga_key_join(List *columns, int nkeys, const char *left,
						   const char *right);
extern SagaStatement *saga_statement(char *sql, char *capture,
									 char *unless_empty);
extern char *saga_type_sql(SagaColumn *column);
extern char *saga_cast_sql(SagaColumn *column);
extern char *saga_output_sql(SagaProgram *program, int stage);
extern List *saga_diff_statements(SagaProgram *program, SagaStage *stage,
								  char *fresh, const char *keys);
extern char *saga_stage_fresh(SagaProgram *program, SagaStage *stage);

/* ---- projection_sets.c ---- */
extern int	saga_plan_sets(SagaPlanner *planner, Query *query, bool top);
extern List *saga_sets_maintain(SagaProgram *program, SagaStage *stage,
								SagaChanges *changes);
extern char *saga_sets_fresh(SagaProgram *program, SagaStage *stage);
extern bool saga_union_all_linear(Query *query);
extern List *saga_expand_unions(Query *core);

#endif							/* SAGA_PROJECTION_PLAN_H */
