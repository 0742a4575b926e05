/*
 * projection_check.c
 *		What a projection may not contain, and what to write instead.
 *
 * Called by projection_query.c and projection_class.c.  Every refusal of a
 * construct is here or beside the code that would have had to handle it.
 */
#include "postgres.h"

#include "access/nbtree.h"
#include "access/htup_details.h"
#include "catalog/catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "access/table.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "parser/parsetree.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "compat.h"
#include "projection_plan.h"

/* ---- functions ---- */

/* Stable, but only because their arguments may be of any type. */
static const char *const json_functions[] = {
	"array_to_json", "json_agg", "json_agg_strict", "json_build_array",
	"json_build_object", "json_object_agg", "json_object_agg_strict",
	"json_object_agg_unique", "jsonb_agg", "jsonb_agg_strict",
	"jsonb_build_array", "jsonb_build_object", "jsonb_object_agg",
	"jsonb_object_agg_strict", "jsonb_object_agg_unique", "row_to_json",
	"to_json", "to_jsonb",
};

static const char *const text_functions[] = {
	"anytextcat", "array_in", "array_out", "array_to_string", "concat",
	"concat_ws", "enum_first", "enum_in", "enum_last", "enum_out",
	"enum_range", "format", "quote_literal", "quote_nullable", "textanycat",
};

static bool
name_among(const char *name, const char *const *names, int n)
{
	for (int i = 0; i < n; i++)
		if (strcmp(name, names[i]) == 0)
			return true;
	return false;
}

/* Is the text (or JSON) of a value the same whatever the settings? */
static bool
type_settings_free(Oid type, bool json)
{
	Oid			element;
	Oid			base = getBaseType(type);

	switch (base)
	{
		case DATEOID:
		case TIMEOID:
		case TIMESTAMPOID:
			return json;
		case TIMETZOID:
		case TIMESTAMPTZOID:
		case INTERVALOID:
		case CASHOID:
		case BYTEAOID:
		case RECORDOID:
		case RECORDARRAYOID:
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGCLASSOID:
		case REGTYPEOID:
		case REGROLEOID:
		case REGNAMESPACEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
		case REGCOLLATIONOID:
			return false;
		default:
			break;
	}
	element = get_element_type(base);
	if (OidIsValid(element))
		return type_settings_free(element, json);
	if (type_is_range(base) || type_is_multirange(base))
		return type_settings_free(type_is_range(base) ?
								  get_range_subtype(base) :
								  get_range_subtype(get_multirange_range(base)),
								  false);
	if (get_typtype(base) == TYPTYPE_COMPOSITE)
	{
		TupleDesc	desc = lookup_rowtype_tupdesc(base, -1);
		bool		result = true;

		for (int i = 0; i < desc->natts && result; i++)
			if (!TupleDescAttr(desc, i)->attisdropped)
				result = type_settings_free(TupleDescAttr(desc, i)->atttypid,
											json);
		ReleaseTupleDesc(desc);
		return result;
	}
	return true;
}

static bool
args_settings_free(List *args, bool json)
{
	ListCell   *lc;

	foreach(lc, args)
	{
		Node	   *arg = lfirst(lc);

		if (IsA(arg, TargetEntry))
			arg = (Node *) ((TargetEntry *) arg)->expr;
		if (IsA(arg, ArrayExpr))
		{
			if (!args_settings_free(((ArrayExpr *) arg)->elements, json))
				return false;
		}
		else if (IsA(arg, RowExpr))
		{
			if (!args_settings_free(((RowExpr *) arg)->args, json))
				return false;
		}
		else if (!IsA(arg, Const) && !type_settings_free(exprType(arg), json))
			return false;
	}
	return true;
}

static List *
node_args(Node *node)
{
	switch (nodeTag(node))
	{
		case T_Aggref:
			return list_concat_copy(((Aggref *) node)->aggdirectargs,
									((Aggref *) node)->args);
		case T_WindowFunc:
			return ((WindowFunc *) node)->args;
		case T_FuncExpr:
			return ((FuncExpr *) node)->args;
		case T_OpExpr:
		case T_DistinctExpr:
		case T_NullIfExpr:
			return ((OpExpr *) node)->args;
		case T_ScalarArrayOpExpr:
			return ((ScalarArrayOpExpr *) node)->args;
		case T_CoerceViaIO:
			return list_make1(((CoerceViaIO *) node)->arg);
		case T_RowCompareExpr:
			return list_concat_copy(((RowCompareExpr *) node)->largs,
									((RowCompareExpr *) node)->rargs);
		default:
			return NIL;
	}
}

static bool
any_arg_type(List *args, Oid type)
{
	ListCell   *lc;

	foreach(lc, args)
	{
		Node	   *arg = lfirst(lc);

		if (IsA(arg, TargetEntry))
			arg = (Node *) ((TargetEntry *) arg)->expr;
		if (getBaseType(exprType(arg)) == type)
			return true;
	}
	return false;
}

static void
refuse_stable(Oid funcid, Node *node)
{
	List	   *args = node_args(node);
	char	   *what = format_procedure(funcid);

	if (IsA(node, OpExpr))
		what = format_operator(((OpExpr *) node)->opno);

	if (any_arg_type(args, TIMESTAMPTZOID) || any_arg_type(args, TIMETZOID))
		SAGA_REFUSE(errmsg("%s depends on the setting TimeZone", what),
					errdetail("The rows of a projection would be other ones in another session."),
					errhint("Name the time zone: (t AT TIME ZONE 'UTC') is a timestamp of which parts, dates, texts and differences are always the same; compare a timestamp with time zone with another one only."));
	if (any_arg_type(args, DATEOID) || any_arg_type(args, TIMESTAMPOID) ||
		any_arg_type(args, TIMEOID) || any_arg_type(args, INTERVALOID))
		SAGA_REFUSE(errmsg("%s depends on settings such as TimeZone, DateStyle or lc_time", what),
					errdetail("The rows of a projection would be other ones in another session."),
					errhint("Keep the date or time itself, or use date_trunc(), extract() or make_date(); make a text of it when reading the projection."));
	if (funcid == F_NOW)
		SAGA_REFUSE(errmsg("now() cannot be part of a projection"),
					errdetail("Its rows would change without any change to a table."),
					errhint("Keep the time as a column, and compare it with now() when reading the projection."));
	SAGA_REFUSE(errmsg("%s is not immutable", what),
				errdetail("A stable function may depend on settings, on the time, or on tables that the projection does not know."),
				errhint("If its result depends on its arguments only, declare it IMMUTABLE; otherwise call it when reading the projection."));
}

static bool
function_checker(Oid funcid, void *context)
{
	Node	   *node = context;
	char		volatility = func_volatile(funcid);
	char	   *name;

	if (volatility == PROVOLATILE_IMMUTABLE)
		return false;
	if (volatility == PROVOLATILE_VOLATILE)
		SAGA_REFUSE(errmsg("%s is volatile", format_procedure(funcid)),
					errdetail("Its result changes without any change to a table."),
					errhint("Store what it returns in a table, or call it when reading the projection."));
	if (get_func_namespace(funcid) == PG_CATALOG_NAMESPACE)
	{
		name = get_func_name(funcid);
		if (name_among(name, json_functions, lengthof(json_functions)) &&
			args_settings_free(node_args(node), true))
			return false;
		if (name_among(name, text_functions, lengthof(text_functions)) &&
			args_settings_free(node_args(node), false))
			return false;
		if (name_among(name, json_functions, lengthof(json_functions)) ||
			name_among(name, text_functions, lengthof(text_functions)))
			SAGA_REFUSE(errmsg("%s() writes values whose text depends on settings such as TimeZone", name),
						errdetail("The rows of a projection would be other ones in another session."),
						errhint("Leave out values with a time zone, intervals, money and bytea (in text: dates and times as well), or convert them, as in (t AT TIME ZONE 'UTC')."));
	}
	refuse_stable(funcid, node);
	return true;
}

/* ---- sources ---- */

static void
check_source(RangeTblEntry *rte)
{
	char	   *name = get_rel_name(rte->relid);

	switch (rte->relkind)
	{
		case RELKIND_RELATION:
		case RELKIND_PARTITIONED_TABLE:
			break;
		case RELKIND_MATVIEW:
			SAGA_REFUSE(errmsg("\"%s\" is a materialized view", name),
						errdetail("What REFRESH does to it cannot be followed."),
						errhint("Make a projection of its query, and read that."));
			break;
		case RELKIND_FOREIGN_TABLE:
			SAGA_REFUSE(errmsg("\"%s\" is a foreign table", name),
						errdetail("Its changes are not in the WAL of this server."),
						errhint("Subscribe to the table with saga.create_source()."));
			break;
		default:
			SAGA_REFUSE(errmsg("\"%s\" is not a table", name),
						errdetail("Only changes to tables are followed."),
						errhint("Read tables, views or other projections."));
	}
	if (IsCatalogRelationOid(rte->relid) || isTempNamespace(get_rel_namespace(rte->relid)) ||
		get_rel_persistence(rte->relid) == RELPERSISTENCE_TEMP)
	{
		bool		catalog = IsCatalogRelationOid(rte->relid);

		SAGA_REFUSE(errmsg(catalog ? "\"%s\" is a system catalog" :
						   "\"%s\" is a temporary table", name),
					errdetail("Its changes are not followed."),
					errhint("Read ordinary tables."));
	}
	if (get_rel_persistence(rte->relid) != RELPERSISTENCE_PERMANENT)
		SAGA_REFUSE(errmsg("\"%s\" is an unlogged table", name),
					errdetail("Its changes are not in the WAL."),
					errhint("ALTER TABLE ... SET LOGGED."));
	if (rte->tablesample != NULL)
		SAGA_REFUSE(errmsg("TABLESAMPLE cannot be part of a projection"),
					errdetail("Which rows it takes is a matter of chance."),
					errhint("Choose rows by a condition on a column."));
	if (!rte->inh && has_subclass(rte->relid))
		SAGA_REFUSE(errmsg("ONLY \"%s\" leaves out its children", name),
					errdetail("Changes are followed for a table and its children together."),
					errhint("Read the parent without ONLY."));
	if (check_enable_rls(rte->relid, InvalidOid, true) == RLS_ENABLED)
		SAGA_REFUSE(errmsg("row-level security of \"%s\" applies to \"%s\"",
						   name, GetUserNameFromId(GetUserId(), false)),
					errdetail("Changes would be taken from the WAL past its policies."),
					errhint("Let a role own the projection that the policies do not apply to, and put conditions into the query."));
}

/* ---- the walk ---- */

/* Names that the statements of upkeep use. */
void
saga_refuse_name(const char *name)
{
	SAGA_REFUSE(errmsg("\"%s\" is a reserved name", name),
				errdetail("Names that begin with \"saga:\" are used inside the statements that keep a projection up."),
				errhint("Name it otherwise."));
}

static void
check_names(RangeTblEntry *rte)
{
	ListCell   *lc;

	if (strncmp(rte->eref->aliasname, "saga:", 5) == 0)
		saga_refuse_name(rte->eref->aliasname);
	if (OidIsValid(rte->relid) &&
		strncmp(get_rel_name(rte->relid), "saga:", 5) == 0)
		saga_refuse_name(get_rel_name(rte->relid));
	foreach(lc, rte->eref->colnames)
		if (strncmp(strVal(lfirst(lc)), "saga:", 5) == 0)
			saga_refuse_name(strVal(lfirst(lc)));
}

typedef struct CheckContext
{
	Query	   *query;			/* the level being walked */
	struct CheckContext *outer;
} CheckContext;

static void
check_var(Var *var, CheckContext *context)
{
	RangeTblEntry *rte;

	if (var->varattno >= 0)
		return;
	for (Index i = 0; i < var->varlevelsup; i++)
		context = context->outer;
	rte = rt_fetch(var->varno, context->query->rtable);
	if (var->varattno != TableOidAttributeNumber)
		SAGA_REFUSE(errmsg("system columns cannot be part of a projection"),
					errdetail("Their values change when a row is moved."),
					errhint("Use the primary key; tableoid is allowed."));
	if (rte->rtekind == RTE_RELATION &&
		(rte->relkind == RELKIND_PARTITIONED_TABLE || has_subclass(rte->relid)))
		SAGA_REFUSE(errmsg("tableoid of a table with partitions or children cannot be part of a projection"),
					errdetail("A change is told of the parent, not of the partition."),
					errhint("Keep what tells the partitions apart in a column."));
}

static bool check_walker(Node *node, CheckContext *context);

static void
check_query(Query *query, CheckContext *outer)
{
	CheckContext context = {query, outer};

	if (query->commandType != CMD_SELECT || query->hasModifyingCTE)
		SAGA_REFUSE(errmsg("a data-modifying WITH cannot define a projection"),
					errdetail("A projection only reads."),
					errhint("Leave INSERT, UPDATE and DELETE out."));
	if (query->rowMarks != NIL)
		SAGA_REFUSE(errmsg("FOR UPDATE and FOR SHARE cannot be part of a projection"),
					errdetail("A projection locks no rows."),
					errhint("Leave the clause out."));
	query_tree_walker(query, check_walker, (void *) &context,
					  QTW_EXAMINE_RTES_BEFORE);
}

static bool
check_walker(Node *node, CheckContext *context)
{
	if (node == NULL)
		return false;
	(void) check_functions_in_node(node, function_checker, node);
	switch (nodeTag(node))
	{
		case T_Query:
			check_query((Query *) node, context);
			return false;
		case T_TargetEntry:
			if (((TargetEntry *) node)->resname != NULL &&
				strncmp(((TargetEntry *) node)->resname, "saga:", 5) == 0)
				saga_refuse_name(((TargetEntry *) node)->resname);
			break;
		case T_RangeTblEntry:
			check_names((RangeTblEntry *) node);
			if (((RangeTblEntry *) node)->rtekind == RTE_RELATION)
				check_source((RangeTblEntry *) node);
			else if (((RangeTblEntry *) node)->rtekind == RTE_NAMEDTUPLESTORE)
				SAGA_REFUSE(errmsg("a transition table cannot be part of a projection"),
							errdetail("It exists in a trigger only."),
							errhint("Read the table."));
			return false;
		case T_Var:
			check_var((Var *) node, context);
			break;
		case T_SQLValueFunction:
			SAGA_REFUSE(errmsg("CURRENT_DATE, CURRENT_USER and the like cannot be part of a projection"),
						errdetail("Its rows would change without any change to a table."),
						errhint("Keep the column, and compare it with CURRENT_DATE or CURRENT_USER when reading the projection."));
			break;
		case T_NextValueExpr:
			SAGA_REFUSE(errmsg("nextval() cannot be part of a projection"),
						errdetail("Its result changes at every call."),
						errhint("Use the key of the table."));
			break;
		case T_Param:
			if (((Param *) node)->paramkind == PARAM_EXTERN)
				SAGA_REFUSE(errmsg("a projection has no parameters"),
							errdetail("$%d has no value when the projection is kept up.",
									  ((Param *) node)->paramid),
							errhint("Write the value into the query, or filter when reading."));
			break;
		default:
			break;
	}
	return expression_tree_walker(node, check_walker, (void *) context);
}

/* Refuse what no projection can contain, at any level. */
void
saga_query_check(Query *query)
{
	check_query(query, NULL);
}

/* The columns put out at the top. */
void
saga_query_check_output(Query *query)
{
	List	   *names = NIL;
	ListCell   *lc;
	int			i = 0;

	foreach(lc, query->targetList)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);
		Oid			type = exprType((Node *) tle->expr);
		ListCell   *other;

		if (tle->resjunk)
			continue;
		i++;
		if (tle->resname == NULL || strcmp(tle->resname, "?column?") == 0)
			SAGA_REFUSE(errmsg("output column %d has no name", i),
						errdetail("Every column of a projection needs a name of its own."),
						errhint("Name it with AS."));
		foreach(other, names)
			if (strcmp(lfirst(other), tle->resname) == 0)
				ereport(ERROR,
						(errcode(ERRCODE_DUPLICATE_COLUMN),
						 errmsg("output column \"%s\" is there twice", tle->resname),
						 errdetail("Every column of a projection needs a name of its own."),
						 errhint("Name one of them otherwise with AS.")));
		names = lappend(names, tle->resname);
		if (strncmp(tle->resname, "saga_", 5) == 0)
			SAGA_REFUSE(errmsg("output column \"%s\" has a reserved name", tle->resname),
						errdetail("Names that begin with \"saga_\" are used by the storage of projections."),
						errhint("Name it otherwise with AS."));
		if (get_typtype(type) == TYPTYPE_PSEUDO)
			SAGA_REFUSE(errmsg("output column \"%s\" has pseudo-type %s",
							   tle->resname, format_type_be(type)),
						errdetail("It cannot be stored."),
						errhint("Cast it to another type, such as jsonb by to_jsonb()."));
	}
	if (i == 0)
		SAGA_REFUSE(errmsg("a projection needs an output column"),
					errdetail("The SELECT list is empty."),
					errhint("Select a column."));
}

/* The owner reads the tables themselves, also those behind a view. */
void
saga_check_rights(SagaProgram *program)
{
	ListCell   *lc;

	foreach(lc, program->sources)
	{
		SagaSource *source = lfirst(lc);
		int			column = -1;

		if (pg_class_aclcheck(source->relid, GetUserId(), ACL_SELECT) ==
			ACLCHECK_OK)
			continue;
		if (bms_is_empty(source->columns) &&
			pg_attribute_aclcheck_all(source->relid, GetUserId(), ACL_SELECT,
									  ACLMASK_ANY) != ACLCHECK_OK)
			aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE,
						   get_rel_name(source->relid));
		while ((column = bms_next_member(source->columns, column)) >= 0)
			if (pg_attribute_aclcheck(source->relid, column, GetUserId(),
									  ACL_SELECT) != ACLCHECK_OK)
				aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE,
							   get_rel_name(source->relid));
	}
}

/* ---- types ---- */

bool
saga_type_groupable(Oid type)
{
	TypeCacheEntry *entry = lookup_type_cache(type, TYPECACHE_EQ_OPR |
											  TYPECACHE_LT_OPR);

	return OidIsValid(entry->eq_opr) && OidIsValid(entry->lt_opr);
}

/*
 * Are equal values the same value?  What is not (1.0 and 1.00, 'a' and 'A' in
 * some collations) cannot be counted: which one a group shows would depend on
 * the order of changes.
 */
bool
saga_type_image_equal(Oid type, int32 typmod, Oid collation)
{
	TypeCacheEntry *entry;
	Oid			support;

	type = getBaseTypeAndTypmod(type, &typmod);
	if (type == NUMERICOID)
		return typmod >= 0;		/* one scale for all values */
	if (type == BPCHAROID && typmod >= 0)
		return get_collation_isdeterministic(collation);	/* all padded */
	if (get_typtype(type) == TYPTYPE_ENUM)
		return true;
	if (OidIsValid(get_element_type(type)))
		return saga_type_image_equal(get_element_type(type), typmod, collation);
	entry = lookup_type_cache(type, TYPECACHE_BTREE_OPFAMILY);
	if (!OidIsValid(entry->btree_opf))
		return false;
	support = get_opfamily_proc(entry->btree_opf, entry->btree_opintype,
								entry->btree_opintype, BTEQUALIMAGE_PROC);
	if (!OidIsValid(support))
		return false;
	return DatumGetBool(OidFunctionCall1Coll(support, collation,
											 ObjectIdGetDatum(entry->btree_opintype)));
}

/* Elements and columns included. */
bool
saga_type_hashable(Oid type)
{
	return OidIsValid(lookup_type_cache(type, TYPECACHE_HASH_EXTENDED_PROC)->hash_extended_proc);
}
