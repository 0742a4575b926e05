/*
 * types.c
 *		JSON values against declared types (see types.h).
 *
 * Called while a definition is compiled (saga_type_...) and then for each
 * input and result (saga_value_check).  Checking goes down into arrays and
 * composites itself and calls only the input functions of what it finds at
 * the leaves, so a value is never handed to code of a user's, with the one
 * exception of domains: those are marked, and refused where they may not be.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "nodes/makefuncs.h"
#include "parser/parse_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/datetime.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "compat.h"
#include "types.h"

/* ---- resolving ---- */

static void
resolve_composite(SagaType *t, MemoryContext context)
{
	TupleDesc	desc = lookup_rowtype_tupdesc_copy(t->base, t->base_typmod);

	t->kind = SAGA_TYPE_COMPOSITE;
	t->attnames = palloc0(desc->natts * sizeof(char *));
	t->atts = palloc0(desc->natts * sizeof(SagaType *));
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped)
			continue;
		t->attnames[t->natts] = pstrdup(NameStr(att->attname));
		t->atts[t->natts] = saga_type_resolve(att->atttypid, att->atttypmod,
											  context);
		t->has_domain |= t->atts[t->natts]->has_domain;
		t->natts++;
	}
	FreeTupleDesc(desc);
}

/* A range's input function calls that of its subtype. */
static bool
range_over_domain(Oid type, char typtype)
{
	Oid			subtype;

	if (typtype == TYPTYPE_MULTIRANGE)
		type = get_multirange_range(type);
	else if (typtype != TYPTYPE_RANGE)
		return false;
	subtype = get_range_subtype(type);
	return getBaseType(subtype) != subtype;
}

/* The input function of a type; where it ends one, the element delimiter. */
static Oid
type_input(Oid type, Oid *param, char *delim)
{
	int16		len;
	bool		byval;
	char		align;
	Oid			function;

	get_type_io_data(type, IOFunc_input, &len, &byval, &align, delim,
					 param, &function);
	return function;
}

SagaType *
saga_type_resolve(Oid type, int32 typmod, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	SagaType   *t = palloc0(sizeof(SagaType));
	Oid			elem;
	char		typtype;

	t->type = type;
	t->typmod = typmod;
	t->base_typmod = typmod;
	t->base = getBaseTypeAndTypmod(type, &t->base_typmod);
	fmgr_info_cxt(type_input(t->base, &t->input_param, &t->delim),
				  &t->input, context);
	if (t->base != type)
	{
		char		unused;

		t->has_domain = true;
		fmgr_info_cxt(type_input(type, &t->domain_param, &unused),
					  &t->domain_input, context);
	}

	typtype = get_typtype(t->base);
	elem = get_element_type(t->base);
	if (t->base == JSONOID || t->base == JSONBOID)
		t->kind = SAGA_TYPE_JSON;
	else if (OidIsValid(elem))
	{
		Oid			unused;

		t->kind = SAGA_TYPE_ARRAY;
		(void) type_input(elem, &unused, &t->delim);
		t->elem = saga_type_resolve(elem, t->base_typmod, context);
		t->has_domain |= t->elem->has_domain;
	}
	else if (typtype == TYPTYPE_COMPOSITE)
		resolve_composite(t, context);
	else
	{
		t->kind = SAGA_TYPE_SCALAR;
		t->has_domain |= range_over_domain(t->base, typtype);
	}
	MemoryContextSwitchTo(old);
	return t;
}

const SagaType *
saga_type_at(const SagaType *type, int npath, char **path)
{
	for (int i = 0; i < npath; i++)
	{
		const SagaType *next = NULL;

		if (type->kind == SAGA_TYPE_ARRAY)
		{
			/* an array type does not say how many dimensions a value has */
			if (i + 1 == npath || type->elem->kind != SAGA_TYPE_SCALAR)
				next = type->elem;
		}
		else if (type->kind == SAGA_TYPE_COMPOSITE)
		{
			for (int j = 0; j < type->natts; j++)
				if (strcmp(type->attnames[j], path[i]) == 0)
					next = type->atts[j];
		}
		if (next == NULL)
			return NULL;
		type = next;
	}
	return type;
}

char *
saga_type_name(Oid type, int32 typmod)
{
	bits16		flags = FORMAT_TYPE_FORCE_QUALIFY;

	/* without one, "char" and bpchar read back as they are */
	if (typmod >= 0)
		flags |= FORMAT_TYPE_TYPEMOD_GIVEN;
	return format_type_extended(type, typmod, flags);
}

bool
saga_type_parse(const char *text, Oid *type, int32 *typmod, char **problem)
{
	*problem = NULL;
	parseTypeString(text, type, typmod, false);
	if (get_typtype(*type) == TYPTYPE_PSEUDO)
		*problem = psprintf("%s is a pseudo-type", text);
	return *problem == NULL;
}

/* ---- checking ---- */

static void
does_not_fit(const SagaType *type, const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("%s is no value of type %s", what,
					format_type_with_typemod(type->type, type->typmod))));
}

static const char *
json_kind(const JsonbValue *v)
{
	switch (v->type)
	{
		case jbvString:
			return "a JSON string";
		case jbvNumeric:
			return "a JSON number";
		case jbvBool:
			return "a JSON boolean";
		case jbvBinary:
			return JsonContainerIsArray(v->val.binary.data)
				? "a JSON array" : "a JSON object";
		default:
			return "JSON null";
	}
}

static void
set_string(JsonbValue *out, char *text)
{
	out->type = jbvString;
	out->val.string.val = text;
	out->val.string.len = strlen(text);
}

static void
set_container(JsonbValue *out, JsonbValue *built)
{
	Jsonb	   *jb = JsonbValueToJsonb(built);

	out->type = jbvBinary;
	out->val.binary.data = &jb->root;
	out->val.binary.len = VARSIZE(jb) - VARHDRSZ;
}

/* With a declared scale the stored number has just that scale. */
static bool
check_numeric(SagaType *type, const JsonbValue *v, JsonbValue *out)
{
	Numeric		given = NULL;
	Numeric		fitted;

	if (v->type == jbvNumeric)
	{
		given = v->val.numeric;
		if (type->base_typmod < 0)
			return false;
		fitted = DatumGetNumeric(DirectFunctionCall2(numeric,
													 NumericGetDatum(given),
													 type->base_typmod));
		if (VARSIZE_ANY(given) == VARSIZE_ANY(fitted) &&
			memcmp(given, fitted, VARSIZE_ANY(given)) == 0)
			return false;
	}
	else
	{
		fitted = DatumGetNumeric(InputFunctionCall(&type->input,
												   saga_value_text(NULL, v),
												   type->input_param,
												   type->base_typmod));
		if (type->base_typmod < 0 ||
			numeric_is_nan(fitted) || numeric_is_inf(fitted))
			return false;
	}
	out->type = jbvNumeric;
	out->val.numeric = fitted;
	return true;
}

/*
 * Dates and times are stored in ISO form, with the offset where the type has
 * one: what they mean must not depend on the settings of who reads them.
 */
static bool
check_datetime(SagaType *type, const JsonbValue *v, JsonbValue *out)
{
	char	   *text = saga_value_text(NULL, v);
	char	   *iso = palloc(MAXDATELEN + 1);
	int			utc = 0;
	Datum		value;

	value = InputFunctionCall(&type->input, text, type->input_param,
							  type->base_typmod);
	JsonEncodeDateTime(iso, value, type->base,
					   type->base == TIMESTAMPTZOID ? &utc : NULL);
	if (strcmp(text, iso) == 0)
		return false;
	set_string(out, iso);
	return true;
}

static bool
check_scalar(SagaType *type, const JsonbValue *v, JsonbValue *out)
{
	if (v->type == jbvBinary)
		does_not_fit(type, json_kind(v));

	switch (type->base)
	{
		case BOOLOID:
			if (v->type == jbvBool)
				return false;
			break;
		case TEXTOID:
			return false;
		case VARCHAROID:
			if (type->base_typmod < 0)
				return false;
			break;
		case NUMERICOID:
			return check_numeric(type, v, out);
		case DATEOID:
		case TIMEOID:
		case TIMETZOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return check_datetime(type, v, out);
		default:
			break;
	}
	(void) InputFunctionCall(&type->input, saga_value_text(NULL, v),
							 type->input_param, type->base_typmod);
	return false;
}

/* A nested JSON array is a further dimension, unless elements are JSON. */
static bool
is_dimension(const SagaType *type, const JsonbValue *v)
{
	return type->elem->kind != SAGA_TYPE_JSON && v->type == jbvBinary &&
		JsonContainerIsArray(v->val.binary.data);
}

/* What is known of an array's dimensions; -1: nothing yet. */
typedef struct Dimensions
{
	int			size[MAXDIM];
	int			nested[MAXDIM]; /* do its elements hold the next dimension? */
} Dimensions;

/* Check one dimension of an array and what is below it. */
static bool
check_dimension(SagaType *type, JsonbContainer *array, int depth,
				Dimensions *dims)
{
	int			n = (int) JsonContainerSize(array);
	bool		changed = false;

	if (depth >= MAXDIM)
		does_not_fit(type, "an array of so many dimensions");
	if (dims->size[depth] >= 0 && dims->size[depth] != n)
		does_not_fit(type, "an array whose rows differ in length");
	dims->size[depth] = n;

	for (int i = 0; i < n; i++)
	{
		JsonbValue *elem = getIthJsonbValueFromContainer(array, i);
		int			nested = is_dimension(type, elem);
		JsonbValue	unused;

		if (dims->nested[depth] >= 0 && dims->nested[depth] != nested)
			does_not_fit(type, "an array whose rows differ in depth");
		dims->nested[depth] = nested;
		if (nested)
			changed |= check_dimension(type, elem->val.binary.data,
									   depth + 1, dims);
		else
			changed |= saga_value_check(type->elem, elem, &unused);
	}
	return changed;
}

static JsonbValue *
normalise_dimension(SagaType *type, JsonbContainer *array,
					JsonbParseState **ps)
{
	uint32		n = JsonContainerSize(array);

	pushJsonbValue(ps, WJB_BEGIN_ARRAY, NULL);
	for (uint32 i = 0; i < n; i++)
	{
		JsonbValue *elem = getIthJsonbValueFromContainer(array, i);
		JsonbValue	fitted;

		if (is_dimension(type, elem))
			normalise_dimension(type, elem->val.binary.data, ps);
		else if (saga_value_check(type->elem, elem, &fitted))
			pushJsonbValue(ps, WJB_ELEM, &fitted);
		else
			pushJsonbValue(ps, WJB_ELEM, elem);
	}
	return pushJsonbValue(ps, WJB_END_ARRAY, NULL);
}

static bool
check_array(SagaType *type, const JsonbValue *v, JsonbValue *out)
{
	JsonbParseState *ps = NULL;
	Dimensions	dims;

	if (v->type != jbvBinary || !JsonContainerIsArray(v->val.binary.data))
		does_not_fit(type, json_kind(v));
	memset(&dims, -1, sizeof(dims));
	if (!check_dimension(type, v->val.binary.data, 0, &dims))
		return false;
	set_container(out, normalise_dimension(type, v->val.binary.data, &ps));
	return true;
}

static int
find_attribute(const SagaType *type, const JsonbValue *key)
{
	for (int i = 0; i < type->natts; i++)
		if ((int) strlen(type->attnames[i]) == key->val.string.len &&
			memcmp(type->attnames[i], key->val.string.val,
				   key->val.string.len) == 0)
			return i;
	return -1;
}

/* A missing attribute is null, one the type does not have is an error. */
static bool
check_composite(SagaType *type, const JsonbValue *v, JsonbValue *out)
{
	JsonbParseState *ps = NULL;
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	key;
	JsonbValue	value;
	JsonbValue	null = {.type = jbvNull};
	JsonbValue	fitted;
	JsonbValue *built;
	bool		changed = false;
	bool	   *seen = palloc0(type->natts * sizeof(bool));

	if (v->type != jbvBinary || !JsonContainerIsObject(v->val.binary.data))
		does_not_fit(type, json_kind(v));

	pushJsonbValue(&ps, WJB_BEGIN_OBJECT, NULL);
	it = JsonbIteratorInit(v->val.binary.data);
	(void) JsonbIteratorNext(&it, &value, true);
	while ((token = JsonbIteratorNext(&it, &key, true)) == WJB_KEY)
	{
		int			i = find_attribute(type, &key);

		(void) JsonbIteratorNext(&it, &value, true);
		if (i < 0)
			does_not_fit(type, psprintf("an object with key \"%.*s\"",
										key.val.string.len, key.val.string.val));
		seen[i] = true;
		pushJsonbValue(&ps, WJB_KEY, &key);
		if (saga_value_check(type->atts[i], &value, &fitted))
		{
			pushJsonbValue(&ps, WJB_VALUE, &fitted);
			changed = true;
		}
		else
			pushJsonbValue(&ps, WJB_VALUE, &value);
	}
	Assert(token == WJB_END_OBJECT);
	built = pushJsonbValue(&ps, WJB_END_OBJECT, NULL);

	for (int i = 0; i < type->natts; i++)
		if (!seen[i])
			(void) saga_value_check(type->atts[i], &null, &fitted);
	if (changed)
		set_container(out, built);
	return changed;
}

bool
saga_value_check(SagaType *type, const JsonbValue *v, JsonbValue *out)
{
	bool		changed = false;

	if (v->type != jbvNull)
	{
		switch (type->kind)
		{
			case SAGA_TYPE_SCALAR:
				changed = check_scalar(type, v, out);
				break;
			case SAGA_TYPE_JSON:
				break;
			case SAGA_TYPE_ARRAY:
				changed = check_array(type, v, out);
				break;
			case SAGA_TYPE_COMPOSITE:
				changed = check_composite(type, v, out);
				break;
		}
	}
	if (type->base != type->type)
		(void) InputFunctionCall(&type->domain_input,
								 saga_value_text(type, changed ? out : v),
								 type->domain_param, type->typmod);
	return changed;
}
