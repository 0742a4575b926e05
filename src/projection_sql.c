/*
 * projection_sql.c
 *		Text from trees: tokens, deltas, terms, and the SQL that all kinds of
 *		stages share.
 *
 * Called by projection_*.c of the planner.  Text is made under a pinned
 * search_path, so that every name in it is qualified; it runs under
 * pg_catalog, pg_temp.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "parser/analyze.h"
#include "parser/parser.h"
#include "parser/parsetree.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/queryenvironment.h"
#include "utils/ruleutils.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "compat.h"
#include "projection_plan.h"

static void expand_token(SagaProgram *program, const char *token,
						 StringInfo buf);

/* ---- deparsing ---- */

static SagaStage *
get_stage(SagaProgram *program, int number)
{
	if (number < 0 || number >= list_length(program->stages))
		saga_refuse_name(psprintf("saga:stage %d", number));
	return list_nth(program->stages, number);
}

static SagaSource *
get_source(SagaProgram *program, Oid relid)
{
	ListCell   *lc;

	foreach(lc, program->sources)
		if (((SagaSource *) lfirst(lc))->relid == relid)
			return lfirst(lc);
	elog(ERROR, "relation %u is no source", relid);
}

/* Names of the columns of a source that the program uses. */
static List *
used_columns(SagaSource *source)
{
	List	   *names = NIL;
	int			column = -1;

	while ((column = bms_next_member(source->columns, column)) >= 0)
		names = lappend(names, (char *)
						quote_identifier(NameStr(TupleDescAttr(source->desc,
															   column - 1)->attname)));
	return names;
}

static void
append_names(StringInfo buf, List *names)
{
	ListCell   *lc;

	foreach(lc, names)
		appendStringInfo(buf, "%s%s", lc == list_head(names) ? "" : ", ",
						 (char *) lfirst(lc));
}

/* Replace the tokens of a deparsed text; literals are left alone. */
static void
expand_tokens(SagaProgram *program, const char *text, StringInfo buf)
{
	const char *p = text;

	while (*p != '\0')
	{
		if (*p == '\'')
		{
			bool		escapes = p > text && p[-1] == 'E' &&
				(p - 1 == text || !(isalnum((unsigned char) p[-2]) || p[-2] == '_'));

			appendStringInfoChar(buf, *p++);
			while (*p != '\0')
			{
				if (escapes && *p == '\\' && p[1] != '\0')
					appendStringInfoChar(buf, *p++);
				else if (*p == '\'' && p[1] == '\'')
					appendStringInfoChar(buf, *p++);
				else if (*p == '\'')
					break;
				appendStringInfoChar(buf, *p++);
			}
			if (*p == '\'')
				appendStringInfoChar(buf, *p++);
		}
		else if (*p == '"')
		{
			const char *end = p + 1;

			while (*end != '\0' && !(*end == '"' && end[1] != '"'))
				end += *end == '"' ? 2 : 1;
			if (strncmp(p, "\"saga:", 6) == 0)
				expand_token(program, pnstrdup(p + 1, end - p - 1), buf);
			else
				appendBinaryStringInfo(buf, p, end - p + 1);
			p = *end == '\0' ? end : end + 1;
		}
		else
			appendStringInfoChar(buf, *p++);
	}
}

/*
 * Parse "SELECT ..." of ours over the storage of a stage, which need not
 * exist.
 */
Query *
saga_parse_over_storage(int stage, List *columns, const char *select_list)
{
	int			nestlevel = NewGUCNestLevel();
	QueryEnvironment *env = create_queryEnv();
	EphemeralNamedRelation enr = palloc0(sizeof(EphemeralNamedRelationData));
	char	   *text;
	List	   *raw;
	Query	   *query;

	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	enr->md.name = psprintf("saga:storage %d", stage);
	enr->md.tupdesc = saga_columns_desc(columns);
	enr->md.enrtype = ENR_NAMED_TUPLESTORE;
	enr->md.enrtuples = 0;
	register_ENR(env, enr);
	text = psprintf("SELECT %s FROM %s s", select_list,
					quote_identifier(enr->md.name));
	raw = raw_parser(text, RAW_PARSE_DEFAULT);
	query = parse_analyze_fixedparams(linitial_node(RawStmt, raw), text, NULL,
									  0, env);
	AtEOXact_GUC(false, nestlevel);
	return query;
}

/*
 * The server wants the entry of a join to come after those of its sides, and
 * to list all columns of both.  Nothing refers to our joins, so they get new
 * entries.
 */
static int
show_join(Query *query, Node *node)
{
	JoinExpr   *join;
	RangeTblEntry *rte;
	int			sides[2];

	if (IsA(node, RangeTblRef))
		return ((RangeTblRef *) node)->rtindex;
	join = castNode(JoinExpr, node);
	sides[0] = show_join(query, join->larg);
	sides[1] = show_join(query, join->rarg);
	rte = makeNode(RangeTblEntry);
	rte->rtekind = RTE_JOIN;
	rte->jointype = join->jointype;
	rte->eref = makeAlias("unnamed_join", NIL);
	rte->inFromCl = true;
	for (int side = 0; side < 2; side++)
	{
		RangeTblEntry *child = rt_fetch(sides[side], query->rtable);
		int			attno = 0;
		ListCell   *lc;

		foreach(lc, child->eref->colnames)
		{
			attno++;
			if (strVal(lfirst(lc))[0] == '\0')
				continue;
			rte->eref->colnames = lappend(rte->eref->colnames, lfirst(lc));
			rte->joinaliasvars = lappend(rte->joinaliasvars,
										 makeVar(sides[side], attno, INT4OID, -1,
												 InvalidOid, 0));
			if (side == 0)
				rte->joinleftcols = lappend_int(rte->joinleftcols, attno);
			else
				rte->joinrightcols = lappend_int(rte->joinrightcols, attno);
		}
	}
	query->rtable = lappend(query->rtable, rte);
	join->rtindex = list_length(query->rtable);
	return join->rtindex;
}

/* The server deparses CTEs by their name, but no tuplestores. */
static bool
prepare_to_show_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, Var))
	{
		/* what it was called in the query may be gone */
		((Var *) node)->varnosyn = ((Var *) node)->varno;
		((Var *) node)->varattnosyn = ((Var *) node)->varattno;
		return false;
	}
	if (IsA(node, RangeTblEntry))
	{
		RangeTblEntry *rte = (RangeTblEntry *) node;

		if (rte->rtekind == RTE_NAMEDTUPLESTORE)
		{
			rte->rtekind = RTE_CTE;
			rte->ctename = rte->enrname;
		}
		return false;
	}
	if (IsA(node, Query))
	{
		Query	   *query = (Query *) node;
		ListCell   *lc;

		for (int i = 1; i <= list_length(query->rtable); i++)
			if (rt_fetch(i, query->rtable)->rtekind == RTE_JOIN)
				saga_blank_rte(query, i);
		if (query->jointree != NULL)
			foreach(lc, query->jointree->fromlist)
				(void) show_join(query, lfirst(lc));
		return query_tree_walker(query, prepare_to_show_walker, context,
								 QTW_EXAMINE_RTES_BEFORE |
								 QTW_IGNORE_JOINALIASES);
	}
	return expression_tree_walker(node, prepare_to_show_walker, context);
}

/* With its tokens. */
char *
saga_deparse_raw(Query *query)
{
	int			nestlevel = NewGUCNestLevel();
	char	   *text;

	query = copyObject(query);
	prepare_to_show_walker((Node *) query, NULL);
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("quote_all_identifiers", "off", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	text = pg_get_querydef(query, false);
	AtEOXact_GUC(false, nestlevel);
	return text;
}

char *
saga_deparse(SagaProgram *program, Query *query)
{
	StringInfoData buf;

	initStringInfo(&buf);
	expand_tokens(program, saga_deparse_raw(query), &buf);
	return buf.data;
}

/* One expression of a query over one relation. */
char *
saga_expr_sql(SagaProgram *program, Query *query, Expr *expr)
{
	Query	   *one = copyObject(query);
	char	   *text;
	char	   *end;

	one->targetList = NIL;
	one->sortClause = NIL;
	one->limitCount = one->limitOffset = NULL;
	one->jointree->quals = NULL;
	saga_target(one, copyObject(expr), "saga_expression");
	text = saga_deparse(program, one);
	end = strstr(text, " AS saga_expression");
	if (end == NULL)
		elog(ERROR, "unexpected text: %s", text);
	*end = '\0';
	while (*text == ' ')
		text++;
	return text + strlen("SELECT ");
}

/* The rows of storage as often as they are to be shown. */
static void
append_storage(SagaStage *stage, StringInfo buf)
{
	SagaBlock  *block = stage->block;
	char	   *list;

	if (block->multiplicity == NULL)
	{
		appendStringInfoString(buf, stage->storage);
		return;
	}
	list = saga_column_list(block->columns, list_length(block->columns), "s");
	appendStringInfo(buf, "(SELECT %s FROM %s s WHERE %s > 0", list,
					 stage->storage, block->multiplicity);
	if (block->repeats)
		appendStringInfo(buf, " UNION ALL SELECT %s FROM %s s, pg_catalog.generate_series(2, %s) WHERE %s > 1",
						 list, stage->storage, block->multiplicity,
						 block->multiplicity);
	appendStringInfoChar(buf, ')');
}

/* What a stage puts out. */
char *
saga_output_sql(SagaProgram *program, int stage)
{
	return saga_deparse(program, get_stage(program, stage)->block->view);
}

static void
expand_token(SagaProgram *program, const char *token, StringInfo buf)
{
	int			number;
	unsigned int relid;

	if (sscanf(token, "saga:stage %d", &number) == 1)
		appendStringInfo(buf, "(%s)", saga_output_sql(program, number));
	else if (sscanf(token, "saga:storage %d", &number) == 1)
		append_storage(get_stage(program, number), buf);
	else if (sscanf(token, "saga:touched %d", &number) == 1)
	{
		SagaStage  *stage = get_stage(program, number);
		List	   *columns = stage->block->columns;

		appendStringInfo(buf, "(SELECT %s, (%s)::bigint AS " SAGA_WEIGHT " FROM %s s, saga_g%d g WHERE %s)",
						 saga_column_list(columns, -1, "s"),
						 stage->block->multiplicity == NULL ? "1" :
						 stage->block->multiplicity, stage->storage,
						 number, saga_key_join(columns, stage->block->nkeys,
											   "s", "g"));
	}
	else if (sscanf(token, "saga:diff %d", &number) == 1)
	{
		SagaStage  *stage = get_stage(program, number);
		List	   *columns = stage->block->columns;
		const char *n = stage->block->multiplicity;

		if (n == NULL)
			n = "1";
		appendStringInfo(buf, "(SELECT %s, greatest(%s, 0)::bigint AS " SAGA_WEIGHT " FROM saga_y%d s UNION ALL SELECT %s, - greatest(%s, 0)::bigint FROM saga_x%d s)",
						 saga_column_list(columns, -1, "s"), n, number,
						 saga_column_list(columns, -1, "s"), n, number);
	}
	else if (sscanf(token, "saga:both s%d", &number) == 1)
	{
		SagaStage  *stage = get_stage(program, number);
		char	   *list = saga_column_list(stage->block->out, -1, NULL);

		appendStringInfo(buf, "(%s UNION ALL SELECT %s FROM %s WHERE %s < 0)",
						 saga_output_sql(program, number), list, stage->delta,
						 SAGA_WEIGHT);
	}
	else if (sscanf(token, "saga:signed s%d", &number) == 1)
	{
		SagaStage  *stage = get_stage(program, number);
		char	   *list = saga_column_list(stage->block->out, -1, NULL);

		appendStringInfo(buf, "(SELECT %s, 1::bigint AS " SAGA_WEIGHT " FROM (%s) n UNION ALL SELECT %s, - " SAGA_WEIGHT " FROM %s)",
						 list, saga_output_sql(program, number), list,
						 stage->delta);
	}
	else if (sscanf(token, "saga:both r%u", &relid) == 1)
	{
		SagaSource *source = get_source(program, relid);
		List	   *names = used_columns(source);

		if (names == NIL)
			names = list_make1("1 AS saga_one");
		appendStringInfoString(buf, "(SELECT ");
		append_names(buf, names);
		appendStringInfo(buf, " FROM %s UNION ALL SELECT ", source->name);
		append_names(buf, names);
		appendStringInfo(buf, " FROM %s WHERE " SAGA_WEIGHT " < 0)",
						 source->delta);
	}
	else if (sscanf(token, "saga:signed r%u", &relid) == 1)
	{
		SagaSource *source = get_source(program, relid);
		List	   *names = used_columns(source);

		appendStringInfoString(buf, "(SELECT ");
		append_names(buf, names);
		appendStringInfo(buf, "%s1::bigint AS " SAGA_WEIGHT " FROM %s UNION ALL SELECT ",
						 names == NIL ? "" : ", ", source->name);
		append_names(buf, names);
		appendStringInfo(buf, "%s- " SAGA_WEIGHT " FROM %s)",
						 names == NIL ? "" : ", ", source->delta);
	}
	else
		saga_refuse_name(token);
}

/* ---- deltas ---- */

bool
saga_rte_changed(SagaChanges *changes, const RangeTblEntry *rte)
{
	int			stage = saga_rte_stage(rte);
	int			i = 0;
	ListCell   *lc;

	if (stage >= 0)
		return bms_is_member(stage, changes->stages);
	if (rte->rtekind != RTE_RELATION)
		return false;
	foreach(lc, changes->program->sources)
	{
		if (((SagaSource *) lfirst(lc))->relid == rte->relid)
			return bms_is_member(i, changes->sources);
		i++;
	}
	return false;
}

static void
make_enr(RangeTblEntry *rte, const char *name, bool weight, SagaProgram *program)
{
	if (rte->rtekind == RTE_RELATION)
	{
		TupleDesc	desc = get_source(program, rte->relid)->desc;

		rte->coltypes = rte->coltypmods = rte->colcollations = NIL;
		for (int i = 0; i < desc->natts; i++)
		{
			Form_pg_attribute att = TupleDescAttr(desc, i);
			bool		gone = att->attisdropped;

			rte->coltypes = lappend_oid(rte->coltypes,
										gone ? InvalidOid : att->atttypid);
			rte->coltypmods = lappend_int(rte->coltypmods,
										  gone ? 0 : att->atttypmod);
			rte->colcollations = lappend_oid(rte->colcollations,
											 gone ? InvalidOid : att->attcollation);
		}
		rte->rtekind = RTE_NAMEDTUPLESTORE;
		rte->relid = InvalidOid;
		rte->relkind = 0;
		rte->rellockmode = 0;
		rte->inh = false;
	}
	rte->enrname = pstrdup(name);
	if (weight)
	{
		rte->eref->colnames = lappend(rte->eref->colnames,
									  makeString(SAGA_WEIGHT));
		rte->coltypes = lappend_oid(rte->coltypes, INT8OID);
		rte->coltypmods = lappend_int(rte->coltypmods, -1);
		rte->colcollations = lappend_oid(rte->colcollations, InvalidOid);
	}
}

/* Make an entry (of a copied tree) read the delta of its input. */
void
saga_rte_to_delta(SagaProgram *program, RangeTblEntry *rte)
{
	int			stage = saga_rte_stage(rte);

	make_enr(rte, stage >= 0 ? get_stage(program, stage)->delta :
			 get_source(program, rte->relid)->delta, true, program);
}

static char *
token_of(const char *what, RangeTblEntry *rte)
{
	int			stage = saga_rte_stage(rte);

	return stage >= 0 ? psprintf("saga:%s s%d", what, stage) :
		psprintf("saga:%s r%u", what, rte->relid);
}

/* ... its new rows and those that left it. */
void
saga_rte_to_both(SagaProgram *program, RangeTblEntry *rte)
{
	make_enr(rte, token_of("both", rte), false, program);
}

static void
rte_to_signed(SagaProgram *program, RangeTblEntry *rte)
{
	make_enr(rte, token_of("signed", rte), true, program);
}

/* ---- terms of a linear core ---- */

static Expr *
weight_var(Query *query, int rtindex)
{
	RangeTblEntry *rte = rt_fetch(rtindex, query->rtable);

	return (Expr *) makeVar(rtindex, list_length(rte->coltypes), INT8OID, -1,
							InvalidOid, 0);
}

static Expr *
times(Expr *left, Expr *right)
{
	if (left == NULL)
		return right;
	return (Expr *) makeFuncExpr(F_INT8MUL, INT8OID, list_make2(left, right),
								 InvalidOid, InvalidOid, COERCE_EXPLICIT_CALL);
}

static Node *
whole_row_mapper(Var *var, void *arg)
{
	return var->varattno == 0 ? saga_whole_row(arg, var) : NULL;
}

static void
add_term(SagaProgram *program, Query *term, Expr *weight, StringInfo buf)
{
	if (weight == NULL)
		weight = (Expr *) makeConst(INT8OID, -1, InvalidOid, sizeof(int64),
									Int64GetDatum(1), false, true);
	saga_target(term, weight, SAGA_WEIGHT);
	term = (Query *) saga_map_vars((Node *) term, whole_row_mapper, term);
	if (buf->len > 0)
		appendStringInfoString(buf, " UNION ALL ");
	appendStringInfo(buf, "(%s)", saga_deparse(program, term));
}

/* Entries of FROM that changed, as often as they are there. */
static List *
changed_occurrences(Query *core, SagaChanges *changes)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, core->jointree->fromlist)
	{
		int			rtindex = castNode(RangeTblRef, lfirst(lc))->rtindex;

		if (saga_rte_changed(changes, rt_fetch(rtindex, core->rtable)))
			result = lappend_int(result, rtindex);
	}
	return result;
}

/* Sum over the non-empty subsets, read from the new state alone. */
static void
expanded_terms(SagaProgram *program, Query *core, List *changed, StringInfo buf)
{
	int			n = list_length(changed);

	for (int mask = 1; mask < (1 << n); mask++)
	{
		Query	   *term = copyObject(core);
		Expr	   *weight = NULL;
		int			bits = 0;

		for (int i = 0; i < n; i++)
		{
			int			rtindex = list_nth_int(changed, i);

			if ((mask & (1 << i)) == 0)
				continue;
			bits++;
			saga_rte_to_delta(program, rt_fetch(rtindex, term->rtable));
			weight = times(weight, weight_var(term, rtindex));
		}
		if (bits % 2 == 0)
			weight = (Expr *) makeFuncExpr(F_INT8UM, INT8OID,
										   list_make1(weight), InvalidOid,
										   InvalidOid, COERCE_EXPLICIT_CALL);
		add_term(program, term, weight, buf);
	}
}

/* One term per change: those before it are new, those after it still old. */
static void
telescoped_terms(SagaProgram *program, Query *core, List *changed,
				 StringInfo buf)
{
	int			n = list_length(changed);

	for (int which = 0; which < n; which++)
	{
		Query	   *term = copyObject(core);
		Expr	   *weight = NULL;

		for (int i = which; i < n; i++)
		{
			int			rtindex = list_nth_int(changed, i);
			RangeTblEntry *rte = rt_fetch(rtindex, term->rtable);

			if (i == which)
				saga_rte_to_delta(program, rte);
			else
				rte_to_signed(program, rte);
			weight = times(weight, weight_var(term, rtindex));
		}
		add_term(program, term, weight, buf);
	}
}

/* The change of the cores: their columns and saga_w, not consolidated. */
char *
saga_core_terms(SagaProgram *program, List *cores, SagaChanges *changes,
				int *nterms)
{
	StringInfoData buf;
	int			n = 0;
	ListCell   *lc;

	initStringInfo(&buf);
	foreach(lc, cores)
	{
		Query	   *core = lfirst_node(Query, lc);
		List	   *changed = changed_occurrences(core, changes);

		if (list_length(changed) <= SAGA_MAX_EXPANDED)
		{
			expanded_terms(program, core, changed, &buf);
			n += (1 << list_length(changed)) - 1;
		}
		else
		{
			telescoped_terms(program, core, changed, &buf);
			n += list_length(changed) * 2;
		}
	}
	if (nterms != NULL)
		*nterms = n;
	return buf.len == 0 ? NULL : buf.data;
}

/* The cores as they are now, in the same shape. */
char *
saga_core_new(SagaProgram *program, List *cores)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	foreach(lc, cores)
		add_term(program, copyObject(lfirst_node(Query, lc)), NULL, &buf);
	return buf.data;
}

/* ---- pieces of text ---- */

SagaStatement *
saga_statement(char *sql, char *capture, char *unless_empty)
{
	SagaStatement *statement = palloc0(sizeof(SagaStatement));

	statement->sql = sql;
	statement->capture = capture;
	statement->unless_empty = unless_empty;
	return statement;
}

/* "a.x, a.y" of the first n columns (-1: all). */
char *
saga_column_list(List *columns, int n, const char *alias)
{
	StringInfoData buf;
	int			i = 0;
	ListCell   *lc;

	initStringInfo(&buf);
	foreach(lc, columns)
	{
		SagaColumn *column = lfirst(lc);

		if (n >= 0 && i >= n)
			break;
		appendStringInfo(&buf, "%s%s%s%s", i++ == 0 ? "" : ", ",
						 alias == NULL ? "" : alias, alias == NULL ? "" : ".",
						 quote_identifier(column->name));
	}
	return buf.data;
}

/* ROW(...), to be compared by image. */
char *
saga_row_sql(List *columns, const char *alias)
{
	return psprintf("ROW(%s)::record", saga_column_list(columns, -1, alias));
}

/* A hash of what can be hashed: equal images have equal ones. */
char *
saga_hash_sql(List *columns, const char *alias)
{
	List	   *hashed = NIL;
	ListCell   *lc;

	foreach(lc, columns)
	{
		SagaColumn *column = lfirst(lc);

		if (saga_type_hashable(column->type))
			hashed = lappend(hashed, column);
	}
	if (hashed == NIL)
		return "0::bigint";
	return psprintf("hash_record_extended(%s, 0)", saga_row_sql(hashed, alias));
}

/* An operator as it is to be written under pg_catalog. */
char *
saga_operator_sql(Oid operator)
{
	HeapTuple	tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(operator));
	Form_pg_operator form;
	char	   *result;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for operator %u", operator);
	form = (Form_pg_operator) GETSTRUCT(tuple);
	if (form->oprnamespace == PG_CATALOG_NAMESPACE)
		result = pstrdup(NameStr(form->oprname));
	else
		result = psprintf("OPERATOR(%s.%s)",
						  quote_identifier(get_namespace_name(form->oprnamespace)),
						  NameStr(form->oprname));
	ReleaseSysCache(tuple);
	return result;
}

/* left.c = right.c, nulls being equal if there can be any. */
char *
saga_equal_sql(SagaColumn *column, const char *left, const char *right)
{
	TypeCacheEntry *entry = lookup_type_cache(column->type, TYPECACHE_EQ_OPR);
	const char *name = quote_identifier(column->name);
	char	   *operator = saga_operator_sql(entry->eq_opr);

	if (column->notnull)
		return psprintf("%s.%s %s %s.%s", left, name, operator, right, name);
	return psprintf("(%s.%s %s %s.%s OR (%s.%s IS NULL AND %s.%s IS NULL))",
					left, name, operator, right, name, left, name, right, name);
}

/* Two relations on their first nkeys columns, of the same names. */
char *
saga_key_join(List *columns, int nkeys, const char *left, const char *right)
{
	StringInfoData buf;
	int			i = 0;
	ListCell   *lc;

	initStringInfo(&buf);
	foreach(lc, columns)
	{
		if (i == nkeys)
			break;
		appendStringInfo(&buf, "%s%s", i++ == 0 ? "" : " AND ",
						 saga_equal_sql(lfirst(lc), left, right));
	}
	return buf.len == 0 ? "true" : buf.data;
}

static char *
collation_sql(Oid collation)
{
	HeapTuple	tuple = SearchSysCache1(COLLOID, ObjectIdGetDatum(collation));
	Form_pg_collation form;
	char	   *result;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for collation %u", collation);
	form = (Form_pg_collation) GETSTRUCT(tuple);
	result = quote_qualified_identifier(get_namespace_name(form->collnamespace),
										NameStr(form->collname));
	ReleaseSysCache(tuple);
	return result;
}

/* Type and collation for CREATE TABLE. */
char *
saga_type_sql(SagaColumn *column)
{
	char	   *type = format_type_extended(column->type, column->typmod,
											FORMAT_TYPE_TYPEMOD_GIVEN |
											FORMAT_TYPE_FORCE_QUALIFY);

	if (OidIsValid(column->collation) &&
		column->collation != get_typcollation(column->type))
		return psprintf("%s COLLATE %s", type,
						collation_sql(column->collation));
	return type;
}

/* ... for a cast of something that has another collation. */
char *
saga_cast_sql(SagaColumn *column)
{
	char	   *type = format_type_extended(column->type, column->typmod,
											FORMAT_TYPE_TYPEMOD_GIVEN |
											FORMAT_TYPE_FORCE_QUALIFY);

	if (OidIsValid(column->collation))
		return psprintf("%s COLLATE %s", type, collation_sql(column->collation));
	return type;
}
