#!/bin/sh
# Makes once in an AWS account what cluster.yaml needs, and writes my-cluster.yaml:
#   sh docs/cluster/prepare-aws.sh REGION BUCKET [YOUR_ADDRESS]
# A bucket, a security group that lets in SSH from your address alone, and two roles: the head
# may start and end machines in this region, both may read and write the bucket. Called again, it
# goes on.
set -eu
test $# -ge 2 || { sed -n '2,3p' "$0"; exit 2; }
aws=${AWS:-aws}
region=$1 bucket=$2 from=${3:-$(curl -fsS https://checkip.amazonaws.com)}
image='/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id'

ask() { $aws --region "$region" --output text "$@"; }
# What is there already is fine; any other error ends this.
once() {
  "$@" 2>"$said" || grep -q -i 'exist\|duplicate\|already\|taken' "$said" || { cat "$said"; exit 1; }
}
said=$(mktemp)
trap 'rm -f "$said"' EXIT

account=$(ask sts get-caller-identity --query Account)
vpc=$(ask ec2 describe-vpcs --filters Name=is-default,Values=true --query 'Vpcs[0].VpcId')

echo "Bucket $bucket: private, everything in it encrypted"
if test "$region" = us-east-1
then once ask s3api create-bucket --bucket "$bucket"
else once ask s3api create-bucket --bucket "$bucket" \
       --create-bucket-configuration "LocationConstraint=$region"
fi
ask s3api put-public-access-block --bucket "$bucket" --public-access-block-configuration \
  BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true

echo "Security group tune-ext: SSH from $from, and the machines among themselves"
once ask ec2 create-security-group --group-name tune-ext --vpc-id "$vpc" \
  --description "SSH from one address, and the cluster itself"
group=$(ask ec2 describe-security-groups --query 'SecurityGroups[0].GroupId' \
  --filters Name=group-name,Values=tune-ext "Name=vpc-id,Values=$vpc")
once ask ec2 authorize-security-group-ingress --group-id "$group" \
  --protocol tcp --port 22 --cidr "$from/32"
once ask ec2 authorize-security-group-ingress --group-id "$group" \
  --protocol=-1 --source-group "$group"

trust='{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole",
  "Principal": {"Service": "ec2.amazonaws.com"}}]}'
files='{"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject",
  "s3:AbortMultipartUpload"], "Resource": "arn:aws:s3:::'$bucket'/*"},
  {"Effect": "Allow", "Action": ["s3:ListBucket", "s3:GetBucketLocation"],
  "Resource": "arn:aws:s3:::'$bucket'"}'
machines='{"Effect": "Allow", "Action": ["ec2:Describe*", "ec2:RunInstances", "ec2:CreateTags",
  "ec2:TerminateInstances", "ec2:StopInstances", "ec2:StartInstances"], "Resource": "*",
  "Condition": {"StringEquals": {"aws:RequestedRegion": "'$region'"}}},
  {"Effect": "Allow", "Action": "iam:GetInstanceProfile", "Resource": "*"},
  {"Effect": "Allow", "Action": "iam:PassRole",
  "Resource": "arn:aws:iam::'$account':role/tune-ext-worker"}'

# Amazon's own role for spot machines, which an account gets with its first one.
once ask iam create-service-linked-role --aws-service-name spot.amazonaws.com

for part in worker head; do
  echo "Role tune-ext-$part"
  may=$files
  test $part = worker || may="$files, $machines"
  once ask iam create-role --role-name tune-ext-$part --assume-role-policy-document "$trust"
  ask iam put-role-policy --role-name tune-ext-$part --policy-name tune-ext \
    --policy-document '{"Version": "2012-10-17", "Statement": ['"$may"']}'
  once ask iam create-instance-profile --instance-profile-name tune-ext-$part
  once ask iam add-role-to-instance-profile --instance-profile-name tune-ext-$part \
    --role-name tune-ext-$part
done

ami=$(ask ssm get-parameter --name "$image" --query Parameter.Value)
sed -e "s/ami-REPLACE_ME/$ami/; s/sg-REPLACE_ME/$group/" \
    -e "s/region: us-west-2/region: $region/" \
    -e "s/us-west-2\([a-d]\)/$region\1/g" cluster.yaml > my-cluster.yaml
echo "Written: my-cluster.yaml (machine image $ami). Next: ray up my-cluster.yaml"
